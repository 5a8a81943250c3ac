"""Answers of a model: batched greedy generation, and P(yes), P(no) at the first token of each answer."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from phi3v_data.errors import UserError
from phi3v_train.data.collate import collate_prompts
from phi3v_train.data.encode import EncodedPrompt
from phi3v_train.data.model_settings import GREEDY
from phi3v_train.device import is_out_of_memory, to_device, with_fp64
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.registry import family_of_model
from phi3v_train.models.renderer import Renderer

SPELLINGS = {"yes": ("yes", "Yes", "YES"), "no": ("no", "No", "NO")}
WORD_MARKS = "▁Ġ"
"""Prefixes of tokens that begin a word (SentencePiece, byte-level BPE)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer, without white space at its ends, and the scores of its first token."""

    text: str
    scores: dict[str, float]


def word_ids(tokenizer: Any) -> dict[str, list[int]]:
    """Ids of the pieces that read yes, Yes or YES, and no likewise, with or without the mark of a word's beginning.

    A spelling that the vocabulary has no single piece for is left out: its first piece begins other words too.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {
        word: sorted(
            vocabulary[mark + spelling]
            for spelling in spellings
            for mark in ("", *WORD_MARKS)
            if mark + spelling in vocabulary
        )
        for word, spellings in SPELLINGS.items()
    }


class FirstToken:
    """A logits processor that changes nothing and keeps the logits of the first generated token."""

    def __init__(self) -> None:
        self.logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by `generate` before each token; `scores` (rows, vocabulary) are the model's own logits."""
        if self.logits is None:
            self.logits = scores.detach().clone()
        return scores


class Generator:
    """Generates answers with one model.

    Args:
        model: any model with transformers' `generate`; its mode is left as it is, see `undisturbed`.
        renderer: what encoded the prompts.
        max_new_tokens: longest answer.
        autocast: what to wrap around the forward passes; a new context each time.
    """

    def __init__(
        self, model: Any, renderer: Renderer, *, max_new_tokens: int = 64, autocast: Any = nullcontext
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self._autocast = autocast
        self._words = word_ids(self.tokenizer)
        self._family = family_of_model(model)
        self._stop = frozenset(self._family.stop_ids(model, self.tokenizer))
        self._config = GenerationConfig(
            **GREEDY,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self._stop) or None,
            pad_token_id=renderer.pad_token_id,
        )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[EncodedPrompt]) -> list[Answer]:
        """The answers to a batch of prompts, in order.

        Raises:
            UserError: out of memory.
        """
        inputs = collate_prompts(prompts, self.renderer)
        first = FirstToken()
        try:
            with self._context(), self._own_settings_only():
                output = self.model.generate(
                    **to_device(inputs, next(self.model.parameters()).device, self._family.host_inputs),
                    generation_config=self._config,
                    logits_processor=LogitsProcessorList([first]),
                    synced_gpus=False,  # each process has all weights, and its own answers
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(_out_of_memory(prompts, self._family)) from error
        generated: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
        assert first.logits is not None
        scores = self._scores(first.logits)
        return [Answer(self._text(ids), each) for ids, each in zip(generated, scores, strict=True)]

    @contextmanager
    def _own_settings_only(self) -> Iterator[None]:
        """Without the model's own generation_config.json, from which transformers fills in what ours leaves out."""
        kept = self.model.generation_config
        self.model.generation_config = self._config
        try:
            yield
        finally:
            self.model.generation_config = kept

    def _context(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._autocast()
        return context

    def _text(self, ids: list[int]) -> str:
        end = next((index for index, each in enumerate(ids) if each in self._stop), len(ids))
        text: str = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.strip()

    def _scores(self, logits: Tensor) -> list[dict[str, float]]:
        """P(yes) and P(no) of each row; nothing where the vocabulary has no such word."""
        if not all(self._words.values()):
            return [{} for _ in logits]
        logs = torch.log_softmax(with_fp64(logits).double(), dim=-1)
        sums = {word: torch.logsumexp(logs[:, ids], dim=-1).exp().tolist() for word, ids in self._words.items()}
        return [dict(zip(sums, values, strict=True)) for values in zip(*sums.values(), strict=True)]


def _out_of_memory(prompts: Sequence[EncodedPrompt], family: ModelFamily) -> str:
    longest = max(len(prompt.input_ids) for prompt in prompts)
    one = family.fewer_image_tokens or "use a device with more memory"
    advice = f"lower --eval_batch_size from {len(prompts)}" if len(prompts) > 1 else one
    return f"out of memory while generating {len(prompts)} answers, whose longest prompt has {longest} tokens: {advice}"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module's own mode and all random generators are then as they were before."""
    modes = {module: module.training for module in model.modules()}
    generators: Mapping[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.set_rng_state(generators["torch"])
        if generators["cuda"]:
            torch.cuda.set_rng_state_all(generators["cuda"])
        if generators["mps"] is not None:
            torch.mps.set_rng_state(generators["mps"])
        np.random.set_state(generators["numpy"])
        random.setstate(generators["python"])
