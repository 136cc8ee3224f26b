"""What a mistake of a user raises."""


class CoreclipError(ValueError):
    """A mistake that its maker can mend: bad input, bad option, bad file.

    The message is one or two lines that name the cause, the value, the rule and the remedy. The command line
    prints it without a traceback and exits with 2. Broken invariants of our own are ``assert``s, never this.
    """


def check_utf8(text: str, what: str) -> None:
    """Refuse a text of the command line that no file and no terminal can hold; ``what`` names it in the error."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CoreclipError(f"{what} {text!r} is not UTF-8 text; type it in a terminal that is set to UTF-8") from None
