"""Answers questions with one model: conversations in, tokens out, several conversations in one batch.

A thread of its own runs the model. Requests that wait are answered together, each with its own sampling, length, stop
strings and end; a request whose client has left ends at the next token. Greedy answers do not depend on the batch that
they were generated in, beyond what the arithmetic of the dtype does; sampled ones depend on their own seed only.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample
from phi3v_train.data.collate import collate_prompts
from phi3v_train.data.encode import EncodedPrompt, Encoder, Provenance
from phi3v_train.data.model_settings import GREEDY
from phi3v_train.device import is_out_of_memory, to_device
from phi3v_train.models.family import ModelFamily
from phi3v_train.serving.request import FinishReason, Piece, QueueFullError, Request, Sampling, ShuttingDownError
from phi3v_train.serving.text_check import TextCheck

NOWHERE = Provenance("", "", 0, "")


class Answerer:
    """A model with its thread; close it after use.

    Args:
        model: in evaluation mode, on its device.
        encoder: of the model's family.
        family: the model's family.
        num_crops: image budget.
        max_batch: conversations that are answered together.
        max_waiting: conversations that may wait for their turn.
    """

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        family: ModelFamily,
        *,
        num_crops: int | None,
        max_batch: int = 8,
        max_waiting: int = 64,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.family = family
        self.num_crops = num_crops
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.context = context_of(model)
        self.stop_ids = frozenset(family.stop_ids(model, encoder.renderer.tokenizer))
        self.check_text = TextCheck(encoder.renderer.tokens).check
        self._waiting: list[Request] = []
        self._running: tuple[Request, ...] = ()
        self._cut = False
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests whose answer has not begun, without those that are not wanted any more."""
        with self._changed:
            return sum(request.is_open for request in self._waiting)

    @property
    def num_running(self) -> int:
        """Requests of the running batch."""
        return len(self._running)

    def encode(self, sample: Sample, images: Sequence[Any]) -> EncodedPrompt:
        """The prompt of a conversation whose last turn has no answer yet; `images` are Pillow images, in order.

        Raises:
            UserError: a text contains image tags, an image has a shape that the model cannot take, or there is no room
                for an answer.
        """
        [prompt] = self.encoder.encode_prompts(sample, images, num_crops=self.num_crops, provenance=NOWHERE)
        length = len(prompt.input_ids)
        if self.context is not None and length >= self.context:
            raise UserError(
                f"the conversation has {length:,} tokens, images included, and the model takes {self.context:,} with "
                "the answer"
            )
        return prompt

    def submit(self, prompt: EncodedPrompt, sampling: Sampling) -> Request:
        """Put a question into the queue; its answer ends where the positions of the model do.

        Raises:
            QueueFullError: too many wait.
            ShuttingDownError: the answerer is closing.
        """
        if self.context is not None:
            room = self.context - len(prompt.input_ids)
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        request = Request(prompt, sampling)
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            self._waiting = [each for each in self._waiting if each.is_open]
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError
            self._waiting.append(request)
            self._changed.notify()
        return request

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, answer those that were taken, and end the thread; it is left behind after a cut."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(0.0 if self._cut else timeout)

    def cut_off(self) -> None:
        """Take no more requests and end those that are open, with a `ShuttingDownError`."""
        with self._changed:
            self._closing = self._cut = True
            for request in (*self._waiting, *self._running):
                if request.is_open:
                    request.put(ShuttingDownError())
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                taken = self._waiting[: self.max_batch]
                del self._waiting[: self.max_batch]
                batch = [request for request in taken if request.is_open]
                if not batch and self._closing and not self._waiting:
                    return
                self._running = tuple(batch)
            if batch:
                self._answer(batch)
            with self._changed:
                self._running = ()

    def _answer(self, batch: Sequence[Request]) -> None:
        try:
            self._generate(batch)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                for request in batch:
                    request.put(error)
                return
        # Only here, as the exception's traceback keeps the batch's tensors.
        for request in batch:
            if len(batch) > 1 and not request.begun:  # what was said of an answer cannot be taken back
                self._answer([request])
            else:
                length = request.num_prompt_tokens
                request.put(UserError(f"the model ran out of memory on a prompt of {length} tokens"))

    @torch.no_grad()
    def _generate(self, batch: Sequence[Request]) -> None:
        inputs = collate_prompts([request.prompt for request in batch], self.encoder.renderer)
        device = next(self.model.parameters()).device
        length = inputs["input_ids"].shape[1]
        rows = [Row(request, self.encoder.renderer.tokenizer, self.stop_ids) for request in batch]
        config = GenerationConfig(
            **GREEDY,
            max_new_tokens=max(request.sampling.max_new_tokens for request in batch),
            eos_token_id=sorted(self.stop_ids) or None,
            pad_token_id=self.encoder.renderer.pad_token_id,
        )
        own, self.model.generation_config = self.model.generation_config, config
        try:
            self.model.generate(
                **to_device(inputs, device, self.family.host_inputs),
                generation_config=config,
                logits_processor=LogitsProcessorList([Samplers([row.sampler(device) for row in rows])]),
                stopping_criteria=StoppingCriteriaList([Listener(rows, length)]),
            )
        finally:
            self.model.generation_config = own
        for row in rows:
            row.finish_if_open()


def context_of(model: Any) -> int | None:
    """Positions that a model has by its configuration, for prompt and answer together; None if it does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None


class Row:
    """One row of a batch: the text of its answer as far as it is certain, and whether it has ended."""

    def __init__(self, request: Request, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self.request = request
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.ids: list[int] = []
        self.sent = ""
        self.done = False

    def sampler(self, device: torch.device) -> "Sampler | None":
        """The sampler of its tokens; None for the most likely ones."""
        sampling = self.request.sampling
        if not sampling.temperature:
            return None
        generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        return Sampler(sampling.temperature, sampling.top_p, generator)

    def take(self, token: int) -> None:
        """The next token of the answer; ignored after its end."""
        if self.done:
            return
        if not self.request.is_open:
            self.done = True
            return
        if token in self.stop_ids:
            self._finish("stop")
            return
        self.ids.append(token)
        text = self._text()
        if (end := first_stop(text, self.request.sampling.stop)) is not None:
            self._finish("stop", text[:end])
        elif len(self.ids) >= self.request.sampling.max_new_tokens:
            self._finish("length")
        else:
            self._send(certain(text, self.request.sampling.stop))

    def finish_if_open(self) -> None:
        """End the answer where the model stopped without a token that says so."""
        if not self.done:
            self._finish("length")

    def _text(self) -> str:
        text: str = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return text.lstrip()

    def _send(self, text: str) -> None:
        if len(text) > len(self.sent):
            self.request.put(Piece(text[len(self.sent) :]))
            self.sent = text

    def _finish(self, reason: FinishReason, text: str | None = None) -> None:
        self.done = True
        whole = (self._text() if text is None else text).rstrip()
        # Bytes that are no text change how those before them are shown: what was sent stays, and the rest follows.
        self.request.put(Piece(whole[len(self.sent) :], reason, len(self.ids)))


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of some strings begins in a text; None if it has none of them."""
    found = [place for string in stop if (place := text.find(string)) >= 0]
    return min(found, default=None)


def certain(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished text that further tokens cannot change.

    Left out: an incomplete character, white space at the end, and what may be the beginning of a stop string.
    """
    end = len(text.rstrip("\ufffd").rstrip())
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:length]):
                end -= length
                break
    return text[:end].rstrip()


class Listener:
    """A stopping criterion that hands each new token to its row. Called with `input_ids` (rows, length so far)."""

    def __init__(self, rows: Sequence[Row], length: int) -> None:
        self.rows = rows
        self.seen = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row has ended."""
        new: list[list[int]] = input_ids[:, self.seen :].tolist()
        self.seen = input_ids.shape[1]
        for row, tokens in zip(self.rows, new, strict=True):
            for token in tokens:
                row.take(token)
        return torch.tensor([row.done for row in self.rows], device=input_ids.device)


@dataclass(frozen=True)
class Sampler:
    """Draws the tokens of one answer."""

    temperature: float
    top_p: float
    generator: torch.Generator

    def draw(self, logits: Tensor) -> int:
        """A token by the logits (vocabulary,), computed on the CPU in fp64, so that a seed means the same anywhere."""
        below = logits.cpu().double()
        below -= below.max()  # before the division, which would overflow at temperatures near 0
        values = torch.softmax(below / self.temperature, dim=-1)
        ordered, ids = torch.sort(values, descending=True, stable=True)
        before = torch.cumsum(ordered, dim=-1) - ordered
        ordered[before >= self.top_p] = 0.0  # the most likely one stays
        choice = torch.multinomial(ordered, 1, generator=self.generator)
        return int(ids[choice])


class Samplers:
    """A logits processor: a row with a sampler gets its token as the only possible one."""

    def __init__(self, samplers: Sequence[Sampler | None]) -> None:
        self.samplers = samplers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` (rows, vocabulary) with the choice of each sampler."""
        for row, sampler in enumerate(self.samplers):
            if sampler is not None:
                token = sampler.draw(scores[row])
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores
