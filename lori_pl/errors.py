"""The one error that a user of lori_pl is meant to read."""


class LoriError(ValueError):
    """Bad input: one message that names the cause, the place (file, line, field) and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
