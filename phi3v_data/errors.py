"""What goes wrong, as the user is told it.

UserError           could not run: exit code 2, one sentence, no traceback
├── NotFoundError   a file, folder, split or name that is not there
└── BusyError       another process holds the directory
Reject              one planned sample cannot be converted: recorded and counted, the run goes on
"""


class UserError(Exception):
    """A mistake or an obstacle outside the program; the message is one sentence that says what to do."""


class NotFoundError(UserError):
    """Something that the user named does not exist."""


class BusyError(UserError):
    """Another writer holds the directory."""


class Reject(Exception):  # noqa: N818 - an outcome that converters raise on purpose, not a failure of the program
    """Raised by `Converter.convert` when one sample cannot be made.

    Args:
        code: kebab-case reason, counted in `dataset.json` (`video-truncated`, `image-missing`).
        message: one sentence for the person who looks the reject up.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def how_to_install(extra: str) -> str:
    """The command that installs an extra, for messages; phi3v is installed from a clone or a wheel of its own."""
    return f"pip install -c constraints.txt -e '.[{extra}]' in a clone of phi3v"
