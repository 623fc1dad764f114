"""What can be wrong with the user's side of a training."""


class TableError(ValueError):
    """A problem of the user's table, in one sentence that names the place and the way out."""


class OptionError(ValueError):
    """An option that cannot be used, in one sentence that says what would be right."""


class FitError(RuntimeError):
    """A fit that failed or cannot begin, with advice; nothing was saved."""
