"""The errors that a user can meet. Each names what is at fault; the command line prints it without a traceback."""


class HzzrayError(Exception):
    """Base of all errors that are reported in one line."""

    def _render_traceback_(self) -> list[str]:
        """Show that line in place of a traceback: what IPython and Jupyter ask for."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(HzzrayError):
    """A wrong argument, name or option (exit code 2)."""


class DataError(HzzrayError):
    """A file that can't be read as what it should be: missing, corrupt, of another release. Retrying won't help."""


class MissingFileError(DataError):
    """A file that isn't there."""


class TransientError(HzzrayError):
    """A fault that may pass by itself (a network error, a server's 5xx). Retrying may help."""


def in_one_line(error: BaseException) -> str:
    """Say what an error of somebody else's says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_of(group: BaseExceptionGroup) -> BaseException:
    """Find the error that a group of tasks ended with: the first of ours, else the first of all."""
    ours = group.subgroup(HzzrayError)
    error: BaseException = ours if ours is not None else group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
