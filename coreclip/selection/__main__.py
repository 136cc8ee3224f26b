"""``python -m coreclip.selection``: the commands of this part alone."""

from coreclip.cli import main

if __name__ == "__main__":
    main("selection")
