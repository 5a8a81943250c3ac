"""Cross-entropy of a model of transformers, with logits of the supervised tokens alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from phi3v_train.device import divisor, with_fp64
from phi3v_train.models.labelled import Labelled

LABELLED = "labelled"
"""Name of the supervised tokens among the inputs of a loss, in place of `labels`."""


def token_loss(
    model: Any, inputs: Mapping[str, Any], count: float, touch: Callable[[], Tensor] | None = None, **more: Any
) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch and the cross-entropy of each supervised token; see `ModelFamily.loss`.

    What `touch` returns is added to the embeddings of the text; see `added_to_embeddings`. `more` are further arguments
    of the model.
    """
    given = {name: value for name, value in inputs.items() if name not in ("labels", LABELLED)}
    labelled: Labelled = inputs[LABELLED] if LABELLED in inputs else Labelled.by_labels(inputs["labels"])
    # With nothing to predict, the same modules run.
    places = labelled.places if len(labelled) else labelled.places.new_zeros(1)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    with only_at(head, places, labelled.shape), added_to_embeddings(model, touch):
        logits: Tensor = model(**given, **more, use_cache=False).logits
    if logits.shape[:2] == labelled.shape:  # the head is not what makes the logits
        logits = logits.flatten(0, 1).index_select(0, places)
    chosen = logits.reshape(len(places), logits.shape[-1]).float()
    if not len(labelled):
        return chosen.sum() * 0, chosen.new_zeros(0)
    losses = functional.cross_entropy(chosen, labelled.targets.to(chosen.device), reduction="none")
    total = with_fp64(losses).double().sum()
    return (total / divisor(count, total.device)).float(), losses.detach()


@contextmanager
def added_to_embeddings(model: Any, zero: Callable[[], Tensor] | None) -> Iterator[None]:
    """Add what `zero` returns to the embeddings of the text, where the features of images would be.

    So gradients flow as in a batch with images: the processes of a sharded model exchange them in the same order.
    """
    if zero is None:
        yield
        return

    def add(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + zero().to(output.device, output.dtype)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_at(head: nn.Module | None, places: Tensor, shape: tuple[int, int]) -> Iterator[None]:
    """Let the head see only the hidden states at `places`, indices into all rows and columns."""

    def choose(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        hidden = given[0]
        if hidden.shape[:2] != shape:
            return None
        return (hidden.flatten(0, 1).index_select(0, places.to(hidden.device))[None], *given[1:])

    handle = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
