"""Image tokens of each family from an image's size alone are those that transformers' processor makes of the image."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from family_references import NAMES, parts, real_processor
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from phi3v_data.errors import UserError
from phi3v_data.tokens.family import BudgetError, ImageShapeError, SettingsError, TokenFamily
from phi3v_data.tokens.registry import get_family as token_family
from phi3v_train.models.huggingface.processor import HubProcessor
from phi3v_train.models.registry import get_family

Size = tuple[int, int]

PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
QWEN3 = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
RELEASED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": ({"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}, {}),
    "qwen3_vl": (QWEN3, {}),
    "qwen3_5": (QWEN3, {}),
    "idefics3": ({"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}, {"image_seq_len": 169}),
    "smolvlm": ({"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}, {"image_seq_len": 64}),
    "gemma3": ({"size": {"height": 896, "width": 896}}, {"image_seq_length": 256}),
    "llava_next": (
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
    ),
    "llava_onevision": (
        {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": PINPOINTS},
        {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full"},
    ),
    "internvl": (
        {"size": {"height": 448, "width": 448}, "crop_to_patches": False, "min_patches": 1, "max_patches": 12},
        {"image_seq_length": 256},
    ),
}
"""Values of the image processor and of the whole processor of released checkpoints.

That of InternVL says `crop_to_patches: false`; its processor cuts all the same.
"""

SIZES = [(28, 28), (4000, 28), (28, 4000), (640, 480), (333, 777), (1000, 2000), (1100, 1000)]


@cache
def released(name: str) -> HubProcessor:
    """A processor with the settings of released checkpoints."""
    image, whole = RELEASED[name]
    tiny = get_family(name).tiny_processor()
    made = type(tiny.image_processor)(**image)
    return HubProcessor(tiny.tokenizer, made, tiny.chat_template, {**whole, **made.to_dict()})


def counted(name: str, processor: HubProcessor, sizes: Sequence[Size]) -> int:
    """Ids that transformers' processor makes of a text of image tags alone; pixel values stay as they are."""
    real = real_processor(name, processor)
    images = [[Image.new("RGB", size) for size in sizes]]
    text = [token_family(name).chat.image_tag * len(sizes)]
    fast = {"do_rescale": False, "do_normalize": False, "add_special_tokens": False}
    return len(real(text=text, images=images, **fast)["input_ids"][0])


def by_size(family: TokenFamily, sizes: Sequence[Size], budget: int | None = None) -> int:
    """The same by the family."""
    count = family.several_image_tokens if len(sizes) > 1 else family.image_tokens
    return sum(count(width, height, budget) for width, height in sizes)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_counts_at_the_settings_of_released_checkpoints(name: str, size: Size) -> None:
    processor = released(name)
    family = token_family(name)
    expected = counted(name, processor, [size])
    assert by_size(family.configured({}, processor.settings), [size]) == expected
    assert by_size(family, [size]) == expected  # these settings are what the family has without a directory


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4000, 4000), (4000, 3000), (3000, 4000), (2900, 1450), (4000, 700)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_counts_of_large_images(name: str, size: Size) -> None:
    assert by_size(token_family(name), [size]) == counted(name, released(name), [size])


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_counts_of_several_images_in_a_sample(name: str, number: int) -> None:
    sizes = [(300, 200), (90, 640), (512, 512), (28, 100)][:number]
    for processor in (parts(name), released(name)):
        family = token_family(name).configured({}, processor.settings)
        assert by_size(family, sizes) == counted(name, processor, sizes)


shapes = st.tuples(st.integers(28, 4000), st.integers(28, 160), st.booleans())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shape=shapes, several=st.lists(st.tuples(st.integers(28, 400), st.integers(28, 400)), max_size=3))
@example(shape=(141, 94, False), several=[])
@example(shape=(57, 56, False), several=[])
@example(shape=(169, 28, True), several=[])
def test_counts_of_any_shape_at_small_settings(name: str, shape: tuple[int, int, bool], several: list[Size]) -> None:
    long, short, tall = shape
    sizes = [(short, long) if tall else (long, short), *several]
    processor = parts(name)
    family = token_family(name).configured({}, processor.settings)
    assert by_size(family, sizes) == counted(name, processor, sizes)


BUDGETS: dict[str, list[Mapping[str, int]]] = {
    "qwen2_5_vl": [{"max_pixels": 28 * 28 * 10}, {"min_pixels": 28 * 28 * 30}],
    "qwen3_vl": [{"max_pixels": 32 * 32 * 10}, {"max_pixels": 32 * 32 * 50, "min_pixels": 32 * 32 * 20}],
    "qwen3_5": [{"max_pixels": 32 * 32 * 10}, {"max_pixels": 32 * 32 * 2}],
    "idefics3": [{"longest_edge": 56}, {"longest_edge": 112}, {"longest_edge": 300}],
    "smolvlm": [{"longest_edge": 56}, {"longest_edge": 280}],
    "llava_next": [{"num_crops": 2}, {"num_crops": 3}],
    "llava_onevision": [{"num_crops": 2}, {"num_crops": 4}],
    "internvl": [{"num_crops": 1}, {"num_crops": 2}, {"num_crops": 9}],
}


@pytest.mark.parametrize(("name", "options"), [(name, each) for name in BUDGETS for each in BUDGETS[name]], ids=str)
def test_counts_under_image_budgets(name: str, options: Mapping[str, int]) -> None:
    """As the validator counts under a budget, and as a processor counts that a run has given it."""
    hub = get_family(name)
    processor = hub.tiny_processor()
    family, budget = token_family(name).configured({}, processor.settings).with_options(options)
    hub.set_budget(processor, budget)
    for option in hub.tokens.other_options:
        if option in options:
            hub.set_option(processor, option, options[option])
    tuned = token_family(name).configured({}, processor.settings)
    for size in [(28, 28), (90, 60), (300, 100), (50, 400), (640, 640), (1000, 28)]:
        expected = counted(name, processor, [size])
        assert by_size(family, [size], budget) == expected
        assert by_size(tuned, [size]) == expected


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "llava_next",
            {"num_additional_image_tokens": "1"},
            "num_additional_image_tokens must be a whole number from 0",
        ),
        ("llava_next", {"patch_size": 337}, "patch_size must be a whole number from 1 to 336, the side of a tile, not"),
        ("llava_next", {"image_grid_pinpoints": [[335, 672]]}, "image_grid_pinpoints must not be less than 336, the"),
        (
            "llava_onevision",
            {"vision_aspect_ratio": "square"},
            "vision_aspect_ratio must be anyres_max_N, not 'square'",
        ),
        (
            "gemma3",
            {"do_pan_and_scan": True},
            "do_pan_and_scan is not supported: set it to false in preprocessor_confi",
        ),
    ],
)
def test_settings_that_do_not_fit_one_another(name: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        token_family(name).configured({}, {**released(name).settings, **changes})
    assert str(caught.value).startswith(sentence)


def test_an_image_that_a_processor_refuses_is_refused_by_its_size() -> None:
    for name in ("qwen2_5_vl", "qwen3_vl", "qwen3_5"):
        with pytest.raises(ImageShapeError, match=r"^an image of 5800 x 28 pixels is too narrow: one side may be at"):
            token_family(name).image_tokens(5800, 28, None)
        with pytest.raises(ValueError, match="aspect ratio"):
            counted(name, parts(name), [(5800, 28)])
        assert by_size(token_family(name), [(5600, 28)]) == counted(name, released(name), [(5600, 28)])


ODD = ["8", -1, 0, 2.5, True, [], {}, "x" * 400, 1e300, 2**40]
KEYS: dict[str, list[tuple[str, ...]]] = {
    "qwen2_5_vl": [("patch_size",), ("merge_size",), ("size", "longest_edge"), ("min_pixels",), ("max_pixels",)],
    "idefics3": [("size", "longest_edge"), ("max_image_size", "longest_edge"), ("image_seq_len",)],
    "gemma3": [("image_seq_length",)],
    "llava_next": [("patch_size",), ("crop_size", "height"), ("image_grid_pinpoints",)],
    "llava_onevision": [("num_image_tokens",), ("size", "height"), ("vision_aspect_ratio",)],
    "internvl": [("image_seq_length",), ("size", "height"), ("size", "width"), ("min_patches",), ("max_patches",)],
}


@pytest.mark.parametrize(("name", "keys"), [(name, keys) for name in KEYS for keys in KEYS[name]], ids=str)
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_an_odd_setting_is_refused_in_one_sentence(name: str, keys: tuple[str, ...], value: Any) -> None:
    odd: dict[str, Any] = dict(released(name).settings)
    if len(keys) == 2:
        odd[keys[0]] = {**(odd.get(keys[0]) or {}), keys[1]: value}
    else:
        odd[keys[0]] = value
    with pytest.raises(SettingsError) as caught:
        token_family(name).configured({}, odd).image_tokens(640, 480, None)
    sentence = str(caught.value)
    assert sentence.startswith(".".join(keys))
    assert len(sentence) < 200
    assert "\n" not in sentence


ABSENT: list[Any] = [{}, {"size": None}, {"size": "x"}, {"size": {}}, {"image_grid_pinpoints": None}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", ABSENT, ids=str)
def test_absent_settings_are_those_of_released_checkpoints(name: str, values: dict[str, Any]) -> None:
    family = token_family(name).configured({}, values)
    assert by_size(family, [(640, 480)]) == by_size(token_family(name), [(640, 480)])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("qwen3_vl", {"longest_edge": 512}, "an image of qwen3_vl is limited by its area: give --max_pixels, a number"),
        ("qwen3_vl", {"num_crops": 4}, "images of the model family qwen3_vl are limited by --max_pixels: give that"),
        ("qwen3_vl", {"max_pixels": 0}, "max_pixels must be a whole number from 1 to 2147483647, not 0"),
        ("gemma3", {"num_crops": 4}, "the model family gemma3 has no image budget: leave num_crops out"),
        ("gemma3", {"max_pixels": 9}, "the model family gemma3 has no image budget: leave max_pixels out"),
        ("gemma3", {"longest_edge": 9}, "the model family gemma3 has no image budget: leave longest_edge out"),
        ("idefics3", {"max_pixels": 9}, "images of the model family idefics3 are limited by --longest_edge: give"),
        ("idefics3", {"longest_edge": 5000}, "longest_edge must be a whole number from 1 to 4096, not 5000"),
        ("internvl", {"longest_edge": 9}, "images of the model family internvl are limited by --num_crops: give that"),
        ("llava_next", {"min_pixels": 9}, "images of the model family llava_next are limited by --num_crops: give"),
    ],
)
def test_a_budget_in_the_terms_of_another_family_is_refused(name: str, options: Any, sentence: str) -> None:
    with pytest.raises(BudgetError) as caught:
        token_family(name).with_options(options)
    assert sentence in str(caught.value)


def test_a_budget_below_every_grid_is_refused() -> None:
    hub = get_family("llava_next")
    with pytest.raises(UserError) as caught:
        hub.set_budget(hub.tiny_processor(), 1)
    sentence = "--num_crops 1: num_crops must be at least 2, the number of tiles of the smallest grid"
    assert str(caught.value) == sentence


def test_no_budget_leaves_the_processor_as_it_is() -> None:
    processor = get_family("phi3v").tiny_processor()
    processor.image_processor.num_crops = 5
    get_family("phi3v").set_budget(processor, None)
    assert processor.image_processor.num_crops == 5
