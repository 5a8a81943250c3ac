"""Settings that a model directory carries, which of them are used, and every difference from what a command uses.

| in the directory | used |
| --- | --- |
| the tuned image budget in preprocessor_config.json, written by a run | yes, see `sources.resolve_num_crops` |
| the budget beside it, the processor's own | where neither an option nor dataset.json nor a run set one |
| stop ids in generation_config.json | yes |
| sampling, penalties, lengths in generation_config.json | no: answers are generated greedily |
| dtype and attention in config.json | no: they follow from the machine and the options |
| what the family's `check_processor` looks at | must be what the family supports |
| the chat template | no: conversations are encoded in one form |
| `model_max_length` in tokenizer_config.json | no: `--max_length` |
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_train.data.sources import Source
from phi3v_train.models.chat_rendering import TemplateError, render
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.machine import Compute
from phi3v_train.models.registry import ignored_plug_in

DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}
"""How answers are generated, by transformers' names."""

NOT_COMPARED = frozenset(
    {
        "bos_token_id", "cache_config", "cache_implementation", "decoder_start_token_id", "eos_token_id",
        "output_attentions", "output_hidden_states", "output_logits", "output_scores", "pad_token_id",
        "return_dict_in_generate", "transformers_version",
    }
)  # fmt: skip
"""Keys of generation_config.json that are used, or that say nothing about how answers are generated."""

CONVERSATION = (
    {"role": "user", "content": "Which colour?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "And now?"},
)
"""Conversation on which chat templates are compared."""


class ModelNote(NamedTuple):
    """A difference in one sentence; a warning where scores may suffer from it, always shown."""

    text: str
    is_warning: bool = False


def model_notes(
    files: ModelFiles,
    processor: Any,
    sources: Sequence[tuple[Source, str]],
    *,
    compute: Compute | None = None,
    longest: int = 0,
) -> list[ModelNote]:
    """Every difference among model, dataset and options.

    Args:
        files: the model.
        processor: its processor.
        sources: what is read with it, each with what set its image budget: `option`, `config FILE`, `model`, ...
        compute: how it computes here; None if it does not.
        longest: tokens of the longest sample that is known.

    Raises:
        UserError: the processor has a setting that this package does not support.
    """
    files.family.check_processor(processor, files.name)
    check_end_of_turn(files, processor)
    ignored = ignored_plug_in(files.family.name)
    notes = [
        *([ModelNote(ignored, is_warning=True)] if ignored else ()),
        *([ModelNote(f"{files.name} {files.family.note}", is_warning=True)] if files.family.note else ()),
        *crops_notes(files, processor, sources),
        *(map(ModelNote, compute_notes(files, compute)) if compute is not None else ()),
        *map(ModelNote, generation_notes(files)),
        *(ModelNote(f"{files.name}: {text}") for text in files.family.processor_notes(processor)),
        *map(ModelNote, template_notes(files, processor)),
        *map(ModelNote, length_notes(files, processor, longest)),
    ]
    return list(dict.fromkeys(notes))


def check_end_of_turn(files: ModelFiles, processor: Any) -> None:
    """Refuse a tokenizer that has no token for the end of an answer: a tuned model would never stop.

    Raises:
        UserError: it has none.
    """
    end = files.family.tokens.chat.end_of_turn.strip()
    if end and end not in processor.tokenizer.get_vocab():
        raise UserError(
            f"{files.name}: the tokenizer has no token {shown(end, 40)}, which ends an answer of the model family "
            f"{files.family.name}; copy tokenizer.json from the model's original files"
        )


def crops_notes(files: ModelFiles, processor: Any, sources: Iterable[tuple[Source, str]]) -> Iterator[ModelNote]:
    """Image budgets that are not what model or dataset.json say."""
    budget = files.family.budget
    if budget is None:
        return
    tuned = files.family.tuned_budget(processor)
    own = files.stored_num_crops
    for source, origin in sources:
        others = []
        if tuned is not None and tuned != source.num_crops:
            others.append(f"the run that made {files.name} used {tuned}: --{budget.name} {tuned} does so again")
        if own is not None and own not in (source.num_crops, tuned):
            others.append(f"{files.image_processor_file} of {files.name} says {own}, which is not used")
        suggested = source.manifest.num_crops if source.manifest is not None else None
        if suggested is not None and suggested != source.num_crops:
            others.append(f"dataset.json suggests {suggested}")
        if others:
            yield ModelNote(
                f"{budget.name} is {source.num_crops} for {source.given} ({origin}); " + ", ".join(others),
                is_warning=tuned is not None and tuned != source.num_crops,
            )


def compute_notes(files: ModelFiles, compute: Compute) -> Iterator[str]:
    """Number format and attention that config.json names and this machine does not use."""
    if files.directory is None:
        return
    config = files.config()
    stored = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if stored and DTYPE_NAMES.get(stored, stored) != compute.dtype.value:
        yield f"config.json of {files.name} names the dtype {stored}; the run computes in {compute.dtype}"
    attention = config.get("_attn_implementation") or config.get("attn_implementation")
    if attention and attention != compute.attn_implementation:
        yield f"config.json of {files.name} names the attention {attention}; the run uses {compute.attn}"


def generation_notes(files: ModelFiles) -> Iterator[str]:
    """Settings of generation_config.json that would change answers, which are generated greedily."""
    found = [
        f"{name} {json.dumps(value)}"
        for name, value in sorted(files.generation_config().items())
        if not (name.startswith("_") or name in NOT_COMPARED or value is None or value == GREEDY.get(name))
    ]
    if found:
        yield (
            f"generation_config.json of {files.name} has {', '.join(found)}; not used, as answers are generated "
            "greedily, at most --max_new_tokens long"
        )


def template_notes(files: ModelFiles, processor: Any) -> Iterator[str]:
    """A chat template that writes conversations in another form, or fails."""
    template, ours = processor.chat_template, files.family.chat_template()
    if template == ours or not ours:
        return
    names = processor.tokenizer.special_tokens_map
    try:
        same = render(template, CONVERSATION, generation=True, names=names) == render(
            ours, CONVERSATION, generation=True, names=names
        )
    except TemplateError as error:
        yield f"the chat template of {files.name} fails ({error}); it is not used"
        return
    if not same:
        yield (
            f"the chat template of {files.name} formats a conversation differently from how samples are encoded "
            "(phi3v-train inspect shows how); it is not used"
        )


def length_notes(files: ModelFiles, processor: Any, longest: int) -> Iterator[str]:
    """Samples that are longer than what the model says it takes."""
    limit = processor.tokenizer.model_max_length
    if longest > limit:
        yield f"{files.name} takes {limit:,} tokens at most (model_max_length), and a sample has {longest:,}"
