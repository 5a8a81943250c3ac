"""Exceptions that are reported to the user.

UserError           could not run: exit code 2, one sentence, no traceback
├── NotFoundError   a file, folder, split or name that does not exist
└── BusyError       another process is writing to the directory
Reject              one planned sample cannot be converted: recorded and counted; the run continues
"""

GOOD, PROBLEMS, COULD_NOT_RUN, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Exit codes of the commands."""


class UserError(Exception):
    """An error in the input or the environment; the message is one sentence that says what to do."""


class NotFoundError(UserError):
    """Something that the user named does not exist."""


class BusyError(UserError):
    """Another process is writing to the directory."""


class Reject(Exception):  # noqa: N818 - an outcome that converters raise on purpose, not a failure of the program
    """Raised by `Converter.convert` if one sample cannot be converted.

    Args:
        code: kebab-case reason, counted in `dataset.json` (`video-truncated`, `image-missing`).
        message: one sentence for the person who reads `rejects.jsonl`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def how_to_install(extra: str) -> str:
    """The command that installs an extra, for messages; phi3v is installed from a clone or its wheel."""
    return f"pip install -c constraints.txt -e '.[{extra}]' in a clone of phi3v"


class OwnWarning(RuntimeWarning):
    """A warning of phi3v itself: one sentence, which the commands print without a place in the source."""
