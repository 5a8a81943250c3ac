"""Logits, losses, gradients and greedy ids against the outputs of the released code."""

import pytest
import torch
from golden_files import GOLDEN, golden_json
from golden_model import SMALL_CASES, Case, distance, golden_case, golden_model
from safetensors.torch import load_file

from phi3v_train.models.phi3v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.vision import ImageTokensError

ATTENTIONS = ("sdpa", "eager")
NUM_TENSORS = 92


@pytest.fixture(scope="module", params=ATTENTIONS)
def model(request: pytest.FixtureRequest) -> Phi3VForConditionalGeneration:
    return golden_model(request.param)


def check_forward_and_gradients(model: Phi3VForConditionalGeneration, case: Case) -> None:
    model.zero_grad()
    output = model(**case.inputs, labels=case.labels, use_cache=False)
    logits = output.logits[0]
    assert distance(logits[case.tensors["logits_positions"]], case.tensors["logits"]) < 1e-4
    assert distance(logits.double().logsumexp(-1).float(), case.tensors["logits_logsumexp"]) < 1e-5
    assert torch.equal(logits.argmax(-1), case.tensors["logits_argmax"].long())
    assert abs(output.loss.item() - case.figures["loss"]) < 1e-5
    output.loss.backward()
    norms = {
        name: parameter.grad.norm().item() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert NUM_TENSORS - len(norms) == case.figures["n_params_without_grad"]
    for name, expected in case.figures["grad_norms"].items():
        if expected is None:
            assert name not in norms
        else:
            assert norms[name] == pytest.approx(expected, rel=1e-3)


def greedy(model: Phi3VForConditionalGeneration, case: Case, **options: object) -> list[int]:
    ids = model.generate(
        **case.inputs,
        attention_mask=torch.ones_like(case.inputs["input_ids"]),
        max_new_tokens=8,
        do_sample=False,
        **options,
    )
    return ids[0, case.length :].tolist()


@pytest.mark.parametrize("name", SMALL_CASES)
def test_logits_loss_and_gradients_equal_the_golden_ones(model: Phi3VForConditionalGeneration, name: str) -> None:
    check_forward_and_gradients(model, golden_case(name))


@pytest.mark.parametrize("name", SMALL_CASES)
def test_greedy_ids_equal_the_golden_ones_with_and_without_a_cache(
    model: Phi3VForConditionalGeneration, name: str
) -> None:
    case = golden_case(name)
    assert greedy(model, case) == case.figures["generate_cached"]
    if case.length < 1000:
        assert greedy(model, case, use_cache=False) == case.figures["generate_nocache"]


@pytest.mark.slow
def test_eight_frames_equal_the_golden_ones() -> None:
    model, case = golden_model(), golden_case("frames8_nc4")
    check_forward_and_gradients(model, case)
    assert greedy(model, case) == case.figures["generate_cached"]


def test_tower_features_equal_the_golden_ones() -> None:
    model, case = golden_model(), golden_case("square_nc4")
    features = model.model.vision_embed_tokens.img_processor(case.inputs["pixel_values"].flatten(0, 1))
    torch.testing.assert_close(features[:2, ::48], case.tensors["vision_features_stride"], rtol=1e-4, atol=5e-4)


def test_image_embeddings_equal_the_golden_ones() -> None:
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    states = model(**case.inputs, output_hidden_states=True).hidden_states
    embeds = states[0][0][case.tensors["logits_positions"]]
    expected = case.tensors["inputs_embeds"]
    assert distance(embeds, expected) < 1e-4 * expected.abs().max()
    assert len(states) == model.config.num_hidden_layers + 1


def test_swapped_tags_get_their_own_images_where_microsofts_code_mixes_them() -> None:
    """<|image_2|> before <|image_1|> equals the same prompt with the images handed over in reading order."""
    model, case = golden_model(), golden_case("two_images_swapped_tags_nc4")
    ids = case.inputs["input_ids"]
    renumbered = torch.where(ids < 0, -3 - ids, ids)
    expected = model(
        input_ids=renumbered,
        pixel_values=case.inputs["pixel_values"].flip(0),
        image_sizes=case.inputs["image_sizes"].flip(0),
    ).logits
    assert distance(model(**case.inputs).logits, expected) < 1e-5
    with pytest.raises(ImageTokensError, match=r"<\|image_1\|> of sample 0 has 469 tokens"):
        model(**(case.inputs | {"input_ids": renumbered}))


def test_tags_begin_with_one_where_no_earlier_part_is_in_a_cache() -> None:
    case = golden_case("two_images_swapped_tags_nc4")
    ids = case.inputs["input_ids"]
    with pytest.raises(ImageTokensError, match=r"numbered \[2, 3\]: they must run from 1 without gaps"):
        golden_model()(**(case.inputs | {"input_ids": torch.where(ids < 0, ids - 1, ids)}))


def test_a_tag_used_twice_is_refused_with_a_sentence() -> None:
    case = golden_case("repeat_tag_nc1")
    with pytest.raises(ImageTokensError, match=r"<\|image_1\|> of sample 0 has 313 tokens.*only once"):
        golden_model()(**case.inputs)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_rope_switch_equals_the_golden_one(attention: str) -> None:
    tensors = load_file(GOLDEN / "cases" / "rope_and_padding.safetensors")
    figures = golden_json("cases/rope_and_padding.json")
    model = golden_model(attention, **figures["overrides"])
    for length in (63, 64, 65, 100):
        for use_cache in (True, False):
            logits = model(input_ids=tensors["ids"][None, :length], use_cache=use_cache).logits
            assert distance(logits[0], tensors[f"logits_len{length}"]) < 1e-4
    for length in (64, 65):
        positions = torch.arange(length)[None]
        cos, sin = model.model.rotary_emb(positions, torch.tensor([[length]]), torch.float32)
        assert distance(cos[0], tensors[f"cos_len{length}"]) < 1e-6
        assert distance(sin[0], tensors[f"sin_len{length}"]) < 1e-6
    prompt = tensors["ids"][None, :60]
    for options in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
        ids = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=10,
            do_sample=False,
            **options,
        )
        assert ids[0, 60:].tolist() == figures["gen_from60_phi35code"]


def test_scale_of_cos_and_sin_equals_the_golden_one() -> None:
    figures = golden_json("cases/rope_and_padding.json")
    assert golden_model().model.rotary_emb.scale == pytest.approx(figures["scaling_factor_main_8192_1024"])
    official = golden_model(max_position_embeddings=131072, original_max_position_embeddings=4096)
    assert official.model.rotary_emb.scale == pytest.approx(figures["scaling_factor_official_131072_4096"])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_padded_batches_equal_the_golden_ones(attention: str, side: str, use_cache: bool) -> None:
    tensors = load_file(GOLDEN / "cases" / "rope_and_padding.safetensors")
    model = golden_model(attention)
    ids, mask, positions = (tensors[f"pad_{side}_{part}"] for part in ("ids", "mask", "pos"))
    for given in ({}, {"position_ids": positions}):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=use_cache, **given).logits
        real = mask.bool()
        assert not logits.isnan().any()
        assert distance(logits[real], tensors[f"pad_{side}_logits"][real]) < 1e-4
