"""A conversation in the terminal: lines in, answers out as they come."""

import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import counted, printable
from phi3v_data.schema import Sample, Turn
from phi3v_train.serving.answerer import Answerer
from phi3v_train.serving.images import read_file
from phi3v_train.serving.request import Sampling

COMMANDS = "/image FILE, /new, /history, /quit"


@dataclass
class Conversation:
    """Turns so far, and the images of the next question."""

    answerer: Answerer
    sampling: Sampling
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    waiting: list[tuple[Path, Any]] = field(default_factory=list)

    def add_image(self, path: Path) -> None:
        """Read an image for the next question.

        Raises:
            UserError: it cannot be read.
        """
        self.waiting.append((path, read_file(path)))

    def start_over(self) -> None:
        """Forget everything but the system message."""
        self.turns, self.images, self.waiting = [], [], []

    def ask(self, question: str, write: Any) -> None:
        """Answer a question; `write` gets the pieces of the answer. Ctrl-C keeps what there is of it.

        Raises:
            UserError: the question or an image cannot be taken; it is not part of the conversation then.
        """
        new = [image for _, image in self.waiting]
        self.answerer.check_text(question, num_images=len(self.images) + len(new))
        names = tuple(str(len(self.images) + number) for number in range(len(new)))
        turns = (*self.turns, Turn(images=names, user=question, assistant=""))
        sample = Sample(id="chat", source="chat", conversations=turns, system=self.system)
        request = self.answerer.submit(self.answerer.encode(sample, [*self.images, *new]), self.sampling)
        text = ""
        try:
            for piece in request:
                write(piece.text)
                text += piece.text
        except KeyboardInterrupt:
            request.cancel()
            write(" [stopped]")
        self.turns.append(turns[-1].model_copy(update={"assistant": text}))
        self.images += new
        self.waiting = []

    def history(self) -> list[str]:
        """The conversation as lines."""
        lines = [f"system: {self.system}"] if self.system else []
        for turn in self.turns:
            images = f" [{counted(len(turn.images), 'image')}]" if turn.images else ""
            lines += [f"you:{images} {turn.user}", f"model: {turn.assistant}"]
        return lines


def talk(conversation: Conversation) -> int:
    """Read lines from stdin until its end or `/quit`; an error in one line does not end the conversation.

    Returns:
        The number of lines that could not be carried out.
    """
    interactive, num_refused = sys.stdin.isatty(), 0
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  # gives `input` the arrow keys
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not text is refused, and not the end
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return num_refused
        try:
            if line == "/quit":
                return num_refused
            if line:
                obey(conversation, line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            num_refused += 1


def obey(conversation: Conversation, line: str) -> None:
    """Carry out one line.

    Raises:
        UserError: it cannot be.
    """
    command, _, rest = line.partition(" ")
    if command == "/image":
        if not rest.strip():
            raise UserError("/image needs the path of a file")
        conversation.add_image(typed_path(rest.strip()))
        print(f"{counted(len(conversation.waiting), 'image')} for the next question", file=sys.stderr)
    elif command == "/new":
        conversation.start_over()
    elif command == "/history":
        for each in conversation.history():
            print(printable(each))
    elif line.startswith("/"):
        raise UserError(f"no command {command}; the commands are {COMMANDS}")
    else:
        conversation.ask(line, write)
        print()


def typed_path(text: str) -> Path:
    """The path of a file as it is, or in quotes or with backslashes, as terminals write one that is dropped on them."""
    with suppress(OSError, ValueError):
        [word] = [text] if os.path.lexists(text) else shlex.split(text)
        return Path(word)
    return Path(text)


def write(text: str) -> None:
    """Print a piece of an answer at once; control characters are escaped."""
    print(printable(text), end="", flush=True)
