"""Generation: batches, images, caches, beams, and the rope switch in a batch."""

import pytest
import torch
from golden_model import golden_case, golden_model
from torch import Tensor

from phi3v_train.models.phi3v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor

CACHES = ({}, {"cache_implementation": "static"}, {"use_cache": False})
SWITCH = {"original_max_position_embeddings": 64, "max_position_embeddings": 4096}


def text(length: int, seed: int) -> Tensor:
    return torch.randint(3, 420, (length,), generator=torch.Generator().manual_seed(seed))


def left_padded(samples: list[Tensor], pad: int = 429) -> dict[str, Tensor]:
    width = max(len(sample) for sample in samples)
    ids = torch.stack([torch.nn.functional.pad(sample, (width - len(sample), 0), value=pad) for sample in samples])
    mask = torch.stack([(torch.arange(width) >= width - len(sample)).long() for sample in samples])
    return {"input_ids": ids, "attention_mask": mask}


def answers(model: Phi3VForConditionalGeneration, inputs: dict[str, Tensor], **options: object) -> list[list[int]]:
    options = {"max_new_tokens": 8, "do_sample": False} | options
    ids = model.generate(**inputs, **options)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def count_tiles(model: Phi3VForConditionalGeneration) -> list[int]:
    """Tiles of each later call of the tower."""
    seen: list[int] = []
    tower = model.model.vision_embed_tokens.img_processor
    tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", CACHES[:2])
def test_a_left_padded_batch_with_images_equals_singles(attention: str, cache: dict[str, object]) -> None:
    model = golden_model(attention, original_max_position_embeddings=8192)
    cases = [golden_case(name) for name in ("wide_nc4", "text_only", "multiturn_two_images_nc4")]
    singles = [answers(model, case.inputs)[0] for case in cases]
    batch = left_padded([case.inputs["input_ids"][0] for case in cases])
    for name in ("pixel_values", "image_sizes"):
        batch[name] = torch.cat([case.inputs[name] for case in cases if name in case.inputs])
    seen = count_tiles(model)
    assert answers(model, batch, **cache) == singles
    assert seen == [int(sum((h * w) // 336**2 + 1 for h, w in batch["image_sizes"].tolist()))]


@pytest.mark.parametrize("cache", CACHES)
def test_samples_that_pass_the_rope_switch_apart_equal_singles(cache: dict[str, object]) -> None:
    """In 40 new tokens one passes at once, one later, one not at all, one began beyond it."""
    model = golden_model(**SWITCH)
    samples = [text(62, 0), text(45, 1), text(10, 2), text(70, 3)]
    singles = [
        answers(model, {"input_ids": s[None], "attention_mask": torch.ones(1, len(s)).long()}, max_new_tokens=40)[0]
        for s in samples
    ]
    assert answers(model, left_padded(samples), max_new_tokens=40, **cache) == singles
    uncached = [
        answers(model, {"input_ids": s[None]}, max_new_tokens=40, use_cache=False, attention_mask=torch.ones(1, len(s)))
        for s in samples
    ]
    assert [rows[0] for rows in uncached] == singles


def test_images_are_read_once_and_again_only_at_the_rope_switch() -> None:
    case = golden_case("wide_nc4")
    model = golden_model(original_max_position_embeddings=case.length + 3)
    uncached = answers(model, case.inputs, use_cache=False)
    seen = count_tiles(model)
    assert answers(model, case.inputs) == uncached
    assert seen == [4, 4]
    seen.clear()
    assert answers(model, case.inputs, max_new_tokens=3)
    assert seen == [4]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_several_answers_repeat_a_sample_s_images_together(options: dict[str, object]) -> None:
    model = golden_model(original_max_position_embeddings=8192)
    cases = [golden_case(name) for name in ("multiturn_two_images_nc4", "wide_nc4")]
    batch = left_padded([case.inputs["input_ids"][0] for case in cases])
    for name in ("pixel_values", "image_sizes"):
        batch[name] = torch.cat([case.inputs[name] for case in cases])
    torch.manual_seed(0)
    together = answers(model, batch, max_new_tokens=4, **options)
    if "num_beams" in options:
        assert together == [answers(model, case.inputs, max_new_tokens=4, **options)[0] for case in cases]
    else:
        assert len(together) == 4


def test_canvases_generate_as_tiles_do_also_with_beams() -> None:
    from PIL import Image

    model, processor = tiny_model(), tiny_processor(num_crops=4)
    images = [Image.linear_gradient("L").resize((200, 90)), Image.radial_gradient("L").resize((90, 200))]
    prompt = "<|user|>\n<|image_1|>\n<|image_2|>\nWhich?<|end|>\n<|assistant|>\n"
    tiles = processor(text=prompt, images=images, return_tensors="pt")
    inputs = {name: tiles[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes")}
    canvases = processor.image_processor.preprocess(images, return_canvas=True)
    bytes_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {
        name: canvases[name] for name in ("canvases", "image_sizes")
    }
    for options in ({}, {"num_beams": 2}):
        assert answers(model, bytes_inputs, **options) == answers(model, inputs, **options)


def test_a_penalty_on_repetition_works_with_image_tokens() -> None:
    model, case = golden_model(), golden_case("wide_nc4")
    assert len(answers(model, case.inputs, repetition_penalty=1.3, no_repeat_ngram_size=2)[0]) == 8


def test_generation_stops_at_the_end_of_an_answer() -> None:
    model, case = golden_model(), golden_case("wide_nc4")
    third = case.figures["generate_cached"][2]
    model.set_stop_ids([third])
    assert answers(model, case.inputs)[0] == case.figures["generate_cached"][:3]


def test_going_on_from_a_returned_cache_equals_one_run() -> None:
    model, case = golden_model(original_max_position_embeddings=8192), golden_case("wide_nc4")
    mask = torch.ones_like(case.inputs["input_ids"])
    first = model.generate(
        **case.inputs, attention_mask=mask, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    cache = first["cache"] if "cache" in first else first["past_key_values"]
    name = "cache" if "cache" in first else "past_key_values"
    ids = first.sequences
    second = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, **{name: cache}
    )
    assert second[0, case.length :].tolist() == answers(model, case.inputs)[0]


def test_passing_the_switch_without_the_whole_conversation_is_refused() -> None:
    model = golden_model(**SWITCH)
    ids = text(64, 4)[None]
    cache = model(input_ids=ids, use_cache=True)
    cache = cache["cache"] if "cache" in cache else cache["past_key_values"]
    from phi3v_train.models.phi3v.generation import CACHE_NAME

    with pytest.raises(ValueError, match="pass the whole conversation"):
        model.prepare_inputs_for_generation(
            ids[:, -1:], attention_mask=torch.ones(1, 65).long(), **{CACHE_NAME: cache}, use_cache=True
        )
