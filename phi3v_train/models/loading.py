"""Load a model and its processor that `locate` found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import short
from phi3v_data.tokens.model_files import other_processor
from phi3v_train.models.adapters import another_base, attach_adapter
from phi3v_train.models.directory import ModelFiles, check_weights, stored_shapes, tiny_family, tiny_name
from phi3v_train.models.family import OtherFamilyError
from phi3v_train.models.machine import Compute
from phi3v_train.models.stored_keys import stored_keys

TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def load_processor(files: ModelFiles, *, budget: int | None = None, options: Mapping[str, int] | None = None) -> Any:
    """Tokenizer and image processor.

    Args:
        files: the model.
        budget: image budget in place of the directory's own.
        options: options of images that were given; of these, those beside the budget.

    Raises:
        UserError: a value in the processor's files that the model does not have.
    """
    family = files.family
    if files.processor_directory is None:
        processor: Any = family.tiny_processor()
    else:
        try:
            processor = family.load_processor(files.processor_directory)
        except UserError as error:
            if files.adapter is not None and isinstance(error, OtherFamilyError):
                reason = f"the adapter's processor is not one of {family.title}"
                raise UserError(another_base(files.adapter, str(files.directory), reason)) from None
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(f"{files.processor_directory}: the processor's files cannot be used: {error}") from None
    family.set_budget(processor, budget)
    for name, value in (options or {}).items():
        if name in family.tokens.other_options:
            family.set_option(processor, name, value)
    return processor


def check_processors(files: ModelFiles) -> None:
    """Refuse an adapter with another processor than its base, which is then another model, before any is loaded.

    Raises:
        UserError: naming both.
    """
    if files.adapter is None or files.directory is None:
        return
    if reason := other_processor(files.adapter, files.directory):
        raise UserError(another_base(files.adapter, str(files.directory), reason))


def quieten_libraries() -> None:
    """No bars, no advice and no notes on deprecation from libraries between our lines."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")


def load_base(files: ModelFiles, compute: Compute, *, seed: int = 0) -> Any:
    """The model without its adapter, on the CPU, all weights in the compute dtype."""
    import torch

    from phi3v_train.device import is_out_of_memory

    quieten_libraries()
    dtype = getattr(torch, TORCH_DTYPES[compute.dtype.value])
    if files.directory is None:
        model: Any = files.family.tiny_model(seed if files.seed is None else files.seed).to(dtype)
        model.set_attn_implementation(compute.attn_implementation)
        return named(model, tiny_name(files.family))
    check_weights(files.directory, files.config())
    try:
        model = files.family.load_model(files.directory, dtype=dtype, attn_implementation=compute.attn_implementation)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # transformers raises anything on values that do not fit
        if is_out_of_memory(error):
            raise
        reason = short(f"{type(error).__name__}: {' '.join(str(error).split())}")
        if "mismatched_sizes" in reason:  # it points to a report in the log
            reason = "tensors have other sizes than it says"
        raise UserError(f"{files.directory}: config.json and the weights do not make a model: {reason}") from error
    return named(model, files.name if files.adapter is None else str(files.directory))


def model_without_weights(files: ModelFiles, compute: Compute) -> Any:
    """The model of a directory as `load_base` loads it, its parameters on the device `meta`.

    Buffers that are computed when a model is made, such as the frequencies of its rotary embedding, have their values.
    """
    import torch
    from accelerate import init_empty_weights

    assert files.directory is not None
    quieten_libraries()
    check_weights(files.directory, files.config())
    with init_empty_weights(include_buffers=False):
        model = files.family.empty_model(
            files.directory,
            dtype=getattr(torch, TORCH_DTYPES[compute.dtype.value]),
            attn_implementation=compute.attn_implementation,
        )
    model.tie_weights()  # each name got a parameter of its own
    stored_keys(model, stored_shapes(files.directory))
    return named(model, files.name).eval()


def named(model: Any, name: str) -> Any:
    """The model under the name that its adapters will give for their base: of a directory, the absolute path."""
    if tiny_family(name) is None and Path(name).is_dir():
        name = str(Path(name).absolute())
    model.config._name_or_path = model.name_or_path = name
    return model


def load_model(files: ModelFiles, compute: Compute, *, seed: int = 0) -> Any:
    """The model for evaluation, its adapter on top, on the device, in evaluation mode."""
    model = load_base(files, compute, seed=seed)
    if files.adapter is not None:
        model = attach_adapter(model, files.adapter).base_model.model
    model.to(compute.device.value)
    return model.eval()
