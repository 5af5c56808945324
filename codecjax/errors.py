"""The one error type for mistakes that a user can make and mend."""


class UserError(ValueError):
    """Bad input: one sentence that names the thing and the remedy.

    Command-line programs print it without a traceback and exit with status 2.
    """
