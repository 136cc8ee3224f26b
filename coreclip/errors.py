"""The one exception that a user's mistake raises."""


class CoreclipError(ValueError):
    """A mistake that its maker can mend: bad input, bad option, bad file.

    The message is one or two lines that name the cause, the value, the rule and the remedy. The command line
    prints it without a traceback and exits with 2. Broken invariants of our own are ``assert``s, never this.
    """
