"""A question on its way to the model, how it is to be answered, and the pieces of its answer."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from phi3v_train.data.encode import EncodedPrompt

FinishReason: TypeAlias = Literal["stop", "length"]


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class ShuttingDownError(Exception):
    """No more requests are taken."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is generated.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 for the most likely token each time.
        top_p: sample from the most likely tokens that have this probability together.
        seed: of the sampling; None for another one each time.
        stop: strings that end the answer and are not part of it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it comes; the last one has a `finish`, and the number of tokens of the whole answer."""

    text: str
    finish: FinishReason | None = None
    num_tokens: int = 0


@dataclass(eq=False, slots=True)
class Request:
    """One question on its way.

    `on_piece` is called after each piece, in the thread that put it: for who cannot wait in a thread.
    """

    prompt: EncodedPrompt
    sampling: Sampling
    pieces: "queue.SimpleQueue[Piece | BaseException]" = field(default_factory=queue.SimpleQueue)
    on_piece: Callable[[], None] | None = None
    cancelled: bool = False
    begun: bool = False
    ended: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt.input_ids)

    @property
    def is_open(self) -> bool:
        """Whether someone waits for more of the answer."""
        return not (self.ended or self.cancelled)

    def put(self, piece: Piece | BaseException) -> None:
        """Hand over a part of the answer, its end, or why there is none."""
        self.begun = True
        self.ended = self.ended or isinstance(piece, BaseException) or piece.finish is not None
        self.pieces.put(piece)
        if self.on_piece is not None:
            self.on_piece()

    def cancel(self) -> None:
        """The answer is not wanted any more; who waits for it gets its end at once."""
        if self.is_open:
            self.cancelled = True
            self.put(Piece("", "stop"))

    def take(self) -> Piece | None:
        """The next piece; None if there is none yet. Raises what went wrong in the model's thread."""
        try:
            return self._checked(self.pieces.get_nowait())
        except queue.Empty:
            return None

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces of the answer; waits for each. Raises what went wrong in the model's thread."""
        while True:
            piece = self._checked(self.pieces.get())
            yield piece
            if piece.finish is not None:
                return

    @staticmethod
    def _checked(piece: Piece | BaseException) -> Piece:
        if isinstance(piece, BaseException):
            raise piece
        return piece
