"""``python -m coreclip``: every command."""

from coreclip.cli import main

if __name__ == "__main__":
    main()
