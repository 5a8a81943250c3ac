"""The interface that transformers expects of a model: packing, recorded outputs, embeddings, assistants, offload."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from golden_model import golden_case, golden_model
from PIL import Image
from torch import Tensor

from phi3v_train.models.phi3v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.generation import CACHE_NAME
from phi3v_train.models.phi3v.tiny import save_tiny, tiny_config, tiny_model, tiny_processor

PROMPT = "<|user|>\n<|image_1|>\nWhich colour?<|end|>\n<|assistant|>\n"


def text(length: int, seed: int) -> Tensor:
    return torch.randint(3, 420, (length,), generator=torch.Generator().manual_seed(seed))


def image_inputs() -> dict[str, Tensor]:
    return dict(tiny_processor(num_crops=1)(PROMPT, Image.new("RGB", (300, 200), (10, 90, 200))))


def greedy(model: Any, **inputs: Any) -> Tensor:
    ids: Tensor = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=2003)
    return ids


@torch.no_grad()
def test_the_base_model_takes_what_padding_free_collators_give() -> None:
    """`cu_seq_lens_*` and `max_length_*` beside positions, as transformers' flattening collator gives them."""
    model = golden_model()
    samples = [text(12, 0), text(7, 1), text(20, 2)]
    alone = [model.model(input_ids=sample[None]).last_hidden_state[0] for sample in samples]
    bounds = torch.tensor([0, 12, 19, 39], dtype=torch.int32)
    packed = {
        "input_ids": torch.cat(samples)[None],
        "position_ids": torch.cat([torch.arange(len(sample)) for sample in samples])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 20,
        "max_length_k": 20,
        "use_cache": False,
        "return_dict": True,
    }
    torch.testing.assert_close(model.model(**packed).last_hidden_state[0], torch.cat(alone), rtol=0, atol=1e-5)
    # The bounds alone say it too, also where the positions beside them run on.
    running = packed | {"position_ids": torch.arange(39)[None]}
    torch.testing.assert_close(model.model(**running).last_hidden_state[0], torch.cat(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(**packed).logits, model.lm_head(torch.cat(alone))[None], rtol=0, atol=1e-4)
    (hidden,) = model.model(**packed | {"return_dict": False})
    torch.testing.assert_close(hidden[0], torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_weights_with_eager_attention() -> None:
    """Each row of weights sums to 1, looks back only, and stays in its sample, padded or packed."""
    model = golden_model("eager")
    short, long = text(5, 3), text(9, 4)
    alone = model(input_ids=short[None], output_attentions=True).attentions
    assert len(alone) == model.config.num_hidden_layers
    assert alone[0].shape == (1, model.config.num_attention_heads, 5, 5)
    torch.testing.assert_close(alone[0].sum(-1), torch.ones_like(alone[0][..., 0]))
    assert not alone[0].triu(1).any()
    ids, mask = torch.full((2, 9), 429), torch.zeros(2, 9, dtype=torch.long)
    ids[0, 4:], mask[0, 4:], ids[1], mask[1] = short, 1, long, 1
    padded = model.model(input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True).attentions
    packed = model.model(
        input_ids=torch.cat((long, short))[None], cu_seq_lens_q=torch.tensor([0, 9, 14]), output_attentions=True
    ).attentions
    for layer, weights in enumerate(alone):
        torch.testing.assert_close(padded[layer][0, :, 4:, 4:], weights[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(packed[layer][0, :, 9:, 9:], weights[0], rtol=0, atol=1e-6)
        assert not padded[layer][0, :, :, :4].any()
        assert not packed[layer][0, :, 9:, :9].any()
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        golden_model("sdpa").model(input_ids=short[None], output_attentions=True)


@torch.no_grad()
def test_outputs_asked_for_in_the_configuration_or_by_index() -> None:
    model, ids = golden_model("eager"), text(6, 5)[None]
    every = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(every) == model.config.num_hidden_layers + 1
    chosen = model(input_ids=ids, output_hidden_states=[0, -1]).hidden_states
    assert [state is not None for state in chosen] == [True] + [False] * (len(every) - 2) + [True]
    assert torch.equal(chosen[0], every[0])
    assert torch.equal(chosen[-1], every[-1])
    assert model(input_ids=ids).hidden_states is None
    model.config.output_hidden_states = model.config.output_attentions = True
    configured = model(input_ids=ids)
    assert all(torch.equal(*pair) for pair in zip(configured.hidden_states, every, strict=True))
    assert len(configured.attentions) == model.config.num_hidden_layers
    assert model(input_ids=ids, output_hidden_states=False).hidden_states is None


def test_labels_that_are_already_shifted() -> None:
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    assert case.labels is not None
    shifted = torch.nn.functional.pad(case.labels[:, 1:], (0, 1), value=-100)
    expected = model(**case.inputs, labels=case.labels).loss
    torch.testing.assert_close(model(**case.inputs, shift_labels=shifted).loss, expected)
    other = torch.where(case.labels >= 0, 3, case.labels)
    torch.testing.assert_close(model(**case.inputs, labels=other, shift_labels=shifted).loss, expected)


@torch.no_grad()
def test_features_of_each_image() -> None:
    """`get_image_features` gives, for each image, the embeddings at its tokens."""
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    images = {name: case.inputs[name] for name in ("pixel_values", "image_sizes")}
    output = model.get_image_features(**images)
    embeds = model.model.embed(**case.inputs)
    for number, features in enumerate(output.pooler_output, 1):
        assert torch.equal(features, embeds[case.inputs["input_ids"] == -number])
    assert output.last_hidden_state.shape[1:] == (576, model.config.vision_settings["hidden_size"])
    assert isinstance(model.get_image_features(**images, return_dict=False), tuple)


@pytest.mark.parametrize("length", [20, 62])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_generation_from_embeddings(length: int, options: dict[str, Any]) -> None:
    """Also past the rope switch at 64 tokens, where the prompt and what was generated are read again."""
    model = golden_model(original_max_position_embeddings=64, max_position_embeddings=4096)
    ids = torch.stack((text(length, 6), text(length, 7)))
    expected = greedy(model, input_ids=ids, **options)[:, length:]
    assert len(set(expected[0].tolist())) > 1
    assert torch.equal(greedy(model, inputs_embeds=model.model.embed(ids).detach(), **options), expected)


def test_generation_from_embeddings_of_images() -> None:
    model, inputs = tiny_model(), image_inputs()
    embeds = model.model.embed(**inputs).detach()
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(**inputs).logits)
    expected = greedy(model, **inputs)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(greedy(model, inputs_embeds=embeds), expected)
    with pytest.raises(ValueError, match="inputs_embeds have no image tokens"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])


def test_an_assistant_model_with_images() -> None:
    """Assisted generation gives the greedy answer, whatever the assistant proposes, and the cache keeps the image."""
    model, inputs = tiny_model(seed=0), image_inputs()
    expected = greedy(model, **inputs)
    for assistant in (tiny_model(seed=1), tiny_model(seed=0)):
        assert torch.equal(greedy(model, **inputs, assistant_model=assistant), expected)
    assert torch.equal(greedy(model, **inputs, prompt_lookup_num_tokens=3), expected)


def test_generation_continues_on_a_cache_that_holds_the_images() -> None:
    model, inputs = tiny_model(), image_inputs()
    whole = greedy(model, **inputs)
    begun = model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    cache = {CACHE_NAME: begun[CACHE_NAME]}
    grown = inputs | {"input_ids": begun.sequences, "attention_mask": torch.ones_like(begun.sequences)}
    continued = model.generate(**grown, **cache, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(continued, whole)


def test_offloaded_models_compute_the_same(tmp_path: Path) -> None:
    """accelerate keeps the weights elsewhere and brings each module's in when it runs."""
    model, inputs = tiny_model(), image_inputs()
    with torch.no_grad():
        logits = model(**inputs).logits
    answer = greedy(model, **inputs)
    offloaded = accelerate.cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    save_tiny(tmp_path / "model")
    parts = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    on_disk = Phi3VForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        device_map={**parts, "model.vision_embed_tokens": "disk"},
        offload_folder=tmp_path / "offload",
        offload_buffers=True,
    )
    assert all(parameter.is_meta for parameter in on_disk.model.vision_embed_tokens.parameters())
    for moved in (offloaded, on_disk):
        with torch.no_grad():
            assert torch.equal(moved(**inputs).logits, logits)
        features = moved.get_image_features(pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        assert [len(each) for each in features.pooler_output] == [313]
    assert torch.equal(greedy(on_disk, **inputs), answer)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3"])
def test_rotary_positions_of_another_kind_are_refused(kind: str) -> None:
    config = tiny_config()
    config.rope_parameters = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match=f"rope_scaling of type '{kind}' is not part of this model"):
        Phi3VForConditionalGeneration(config)


def test_ids_and_embeddings_at_once_are_refused() -> None:
    model = tiny_model().model
    ids = torch.ones(1, 3, dtype=torch.long)
    embedded = model.get_input_embeddings()(ids)
    for given in ({"input_ids": ids, "inputs_embeds": embedded}, {}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**given)
