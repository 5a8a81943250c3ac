"""The model of a server or a chat, by its options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phi3v_train.config import DEFAULT_NUM_CROPS, ModelConfig
from phi3v_train.data.encode import Encoder
from phi3v_train.data.model_settings import ModelNote, model_notes
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.loading import load_model, load_processor
from phi3v_train.models.machine import Compute, choose_compute
from phi3v_train.models.registry import make_renderer
from phi3v_train.serving.answerer import Answerer


@dataclass(frozen=True)
class Served:
    """A loaded model: its name, what answers with it, where it computes, and what a user should know of it."""

    name: str
    answerer: Answerer
    compute: Compute
    notes: Sequence[ModelNote]


def load(files: ModelFiles, config: ModelConfig, *, max_batch: int = 8, max_waiting: int = 64) -> Served:
    """Load a model for answering, see `locate`; of `config` only dtype, device, attention and image options matter.

    Raises:
        UserError: it cannot be used.
    """
    options = config.image_options
    family = files.family
    budget = family.image_budget(options)
    if budget is None and family.budget is not None:
        default = family.tokens.default_budget or DEFAULT_NUM_CROPS
        budget = files.tuned_num_crops or files.stored_num_crops or default
    compute = choose_compute(config)
    processor = load_processor(files, budget=budget, options=options)
    notes = model_notes(files, processor, [], compute=compute)
    model = load_model(files, compute)
    leave_files(model)
    family.match_processor(model, processor)
    encoder = Encoder(make_renderer(family, processor))
    answerer = Answerer(model, encoder, family, num_crops=budget, max_batch=max_batch, max_waiting=max_waiting)
    return Served(files.name, answerer, compute, notes)


def leave_files(model: Any) -> None:
    """Copy the weights that are mapped from files: whoever writes over these changes answers, or ends the process."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
