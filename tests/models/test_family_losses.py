"""Loss and gradients of every family: of a batch, of its samples one by one, packed, and the model's own are equal."""

import inspect
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from family_references import CONVERSATIONS, NAMES, renderer_of
from PIL import Image
from torch.utils._pytree import tree_map

from phi3v_data.schema import Sample
from phi3v_train.data.collate import collate, collate_prompts
from phi3v_train.data.encode import EncodedPrompt, EncodedSample, Encoder, Provenance
from phi3v_train.models.registry import get_family

TALKS = ("one image", "text alone", "two turns, two images", "white space between images")
"""Samples with one image, none, two, and three."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models on one thread: quick, and the same last bits on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def merger_of_smolvlm() -> str:
    """Source of the method that puts image features into a text; empty if transformers has none."""
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

    merger = getattr(SmolVLMModel, "inputs_merger", None)
    return "" if merger is None else inspect.getsource(merger)


@cache
def model_of(name: str) -> Any:
    """A tiny model in fp32, in training mode: it has no dropout."""
    if name == "smolvlm" and "patch_size" in merger_of_smolvlm():
        pytest.skip("this transformers cuts SmolVLM's image tokens by patch_size, which does not divide the tiny ones")
    return get_family(name).tiny_model(3).train()


@cache
def noise(number: int) -> list[Image.Image]:
    """Images that differ."""
    random = np.random.default_rng(0)
    shapes = [(60, 90, 3), (120, 50, 3), (30, 140, 3)]
    return [Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes][:number]


@cache
def encoded(name: str, talk: str) -> EncodedSample:
    sample: Sample = CONVERSATIONS[talk]
    place = Provenance("d", "s", 0, "a")
    return Encoder(renderer_of(name)).encode(sample, noise(len(sample.images)), num_crops=None, provenance=place)


def batch(name: str, talks: Sequence[str], *, pack: bool = False) -> dict[str, Any]:
    return collate([encoded(name, talk) for talk in talks], renderer_of(name), pack=pack)


def supervised(name: str, talks: Sequence[str]) -> int:
    return sum(encoded(name, talk).num_supervised for talk in talks)


def gradients(name: str, groups: Sequence[Sequence[str]], *, pack: bool = False) -> tuple[float, torch.Tensor]:
    """Loss and all gradients in a row of one update whose micro-batches are `groups`."""
    family, model = get_family(name), model_of(name)
    count = float(supervised(name, [talk for group in groups for talk in group]))
    model.zero_grad()
    total = 0.0
    for group in groups:
        loss, _ = family.loss(model, batch(name, group, pack=pack), count)
        loss.backward()
        total += float(loss.detach())
    config = model.config.to_dict()
    reached = [each.grad.flatten() for key, each in model.named_parameters() if family.is_reached(key, config)]
    return total, torch.cat(reached)


@cache
def whole(name: str) -> tuple[float, torch.Tensor]:
    """Of one batch of all samples."""
    return gradients(name, [TALKS])


def assert_equal(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor]) -> None:
    """Losses and gradients, each to a relative 1e-5."""
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].shape == expected[1].shape
    assert float((found[1] - expected[1]).norm()) <= 1e-5 * float(expected[1].norm())
    assert float(found[1].norm()) == pytest.approx(float(expected[1].norm()), rel=1e-5)


def own_loss(name: str, talks: Sequence[str]) -> float:
    """The mean over supervised tokens, by the model's own loss."""
    model = model_of(name)
    given = batch(name, talks)
    with torch.no_grad():
        return float(model(**given, use_cache=False).loss)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_batch_is_the_models_own(name: str) -> None:
    loss, _ = whole(name)
    assert loss == pytest.approx(own_loss(name, TALKS), rel=1e-5)
    parts = [own_loss(name, [talk]) * supervised(name, [talk]) for talk in TALKS]
    assert loss == pytest.approx(sum(parts) / supervised(name, TALKS), rel=1e-5)


@pytest.mark.parametrize(
    "groups", [[TALKS[:2], TALKS[2:]], [[talk] for talk in TALKS], [TALKS[:3], TALKS[3:]]], ids=len
)
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_do_not_depend_on_the_division_into_micro_batches(
    name: str, groups: Sequence[Sequence[str]]
) -> None:
    assert_equal(gradients(name, groups), whole(name))


@pytest.mark.parametrize("name", [name for name in NAMES if not get_family(name).no_packing])
def test_packed_samples_have_the_same_loss_and_gradients(name: str) -> None:
    assert_equal(gradients(name, [TALKS], pack=True), whole(name))
    assert_equal(gradients(name, [TALKS[:1], TALKS[1:]], pack=True), whole(name))


def test_families_that_cannot_pack_say_why() -> None:
    reasons = {name: get_family(name).no_packing for name in NAMES if get_family(name).no_packing}
    assert reasons == {
        "qwen3_5": ("the linear attention of Qwen3.5 carries its state from one sample of a packed row into the next"),
        "gemma3": (
            "in Gemma 3, image tokens attend forwards too, which its masks do not keep within a sample of a packed row"
        ),
    }


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_logit(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        together = model(**batch(name, TALKS), use_cache=False).logits
        for row, talk in enumerate(TALKS):
            alone = model(**batch(name, [talk]), use_cache=False).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_is_said_to_be_reached_gets_a_gradient_and_no_other(name: str) -> None:
    family, model = get_family(name), model_of(name)
    config = model.config.to_dict()
    model.zero_grad()
    family.loss(model, batch(name, TALKS), 1.0)[0].backward()
    moved = {key for key, each in model.named_parameters() if each.grad is not None and each.grad.abs().max() > 0}
    expected = {key for key, _ in model.named_parameters() if family.is_reached(key, config)}
    still = expected - moved
    # A bias that is the same for all keys changes no attention weight, so its gradient is nothing but rounding.
    assert {key for key in still if not key.endswith(("k_proj.bias", "qkv.bias"))} == set()
    assert moved - expected == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_text_alone_has_gradients_of_the_vision_part_that_are_zero(name: str) -> None:
    """So that every process of a group has the same parameters to agree on."""
    family, model = get_family(name), model_of(name)
    config = model.config.to_dict()
    model.zero_grad()
    family.loss(model, batch(name, ["text alone"]), 1.0)[0].backward()
    vision = {
        key: each.grad
        for key, each in model.named_parameters()
        if family.part_of(key) != "language" and family.is_reached(key, config)
    }
    assert vision
    missing = [key for key, each in vision.items() if each is None]
    assert missing == []
    assert all(float(each.abs().max()) == 0 for each in vision.values() if each is not None)


def order_of_modules(name: str, talk: str) -> tuple[list[str], list[str]]:
    """Names of modules as a forward pass begins them, and as gradients of their output tensors arrive.

    The second is without the whole model, whose output has the features of images beside the logits.
    """
    model = model_of(name)
    get_family(name).loss(model, batch(name, ["one image"]), 1.0)  # transformers adds hooks of its own at first
    begun: list[str] = []
    arrived: list[str] = []
    handles: list[Any] = []

    def watched(module_name: str, value: Any) -> Any:
        """The same value as a node of its own in the graph, as DeepSpeed makes them."""
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return value
        node = value.view_as(value)
        node.register_hook(lambda _: arrived.append(module_name))
        return node

    def watch_output(module_name: str, output: Any) -> Any:
        return tree_map(partial(watched, module_name), output)

    for module_name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, n=module_name: begun.append(n)))
        if module_name not in ("", "model"):
            handles.append(module.register_forward_hook(lambda _, __, output, n=module_name: watch_output(n, output)))
    try:
        get_family(name).loss(model, batch(name, [talk]), 1.0)[0].backward()
    finally:
        for handle in handles:
            handle.remove()
    return begun, arrived


@pytest.mark.parametrize("name", NAMES)
def test_modules_run_in_one_order_with_and_without_images(name: str) -> None:
    """Forwards and backwards: processes of a model divided by ZeRO-3 wait for ever where the order differs."""
    text, image, images = (order_of_modules(name, talk) for talk in (TALKS[1], TALKS[0], TALKS[2]))
    assert len(image[0]) > 20
    assert text == image == images


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("talk", [*TALKS, "first and inside", "an image late"])
def test_positions_of_m_rope_are_those_of_the_model(name: str, talk: str) -> None:
    given = batch(name, [talk])
    image = model_of(name).config.image_token_id
    expected, _ = model_of(name).model.get_rope_index(
        input_ids=given["input_ids"],
        mm_token_type_ids=(given["input_ids"] == image).int(),
        image_grid_thw=given.get("image_grid_thw"),
        attention_mask=given["attention_mask"],
    )
    assert given["position_ids"][1:].tolist() == expected.tolist()
    assert given["position_ids"][0, 0].tolist() == list(range(given["input_ids"].shape[1]))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_padded_on_the_left_are_answered_as_each_alone_and_as_the_training_batch_says(name: str) -> None:
    model = model_of(name).eval()
    renderer = renderer_of(name)
    place = Provenance("d", "s", 0, "a")
    prompts = []
    for talk in TALKS:
        sample = CONVERSATIONS[talk]
        images = noise(len(sample.images))
        prompts += Encoder(renderer).encode_prompts(sample, images, num_crops=None, provenance=place)

    def answers(given: Sequence[EncodedPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": renderer.pad_token_id}
        found = model.generate(
            **collate_prompts(given, renderer), **chosen, output_logits=True, return_dict_in_generate=True
        )
        return found.sequences[:, -3:], torch.stack(found.logits, 1)

    with torch.no_grad():
        ids, logits = answers(prompts)
        for row, talk in enumerate(TALKS):
            alone_ids, alone_logits = answers([prompts[row]])
            assert ids[row].tolist() == alone_ids[0].tolist()
            torch.testing.assert_close(logits[row], alone_logits[0], rtol=0, atol=1e-5)
            trained = model(**batch(name, [talk]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, 0], trained[len(prompts[row].input_ids) - 1], rtol=0, atol=1e-5)
    model.train()
