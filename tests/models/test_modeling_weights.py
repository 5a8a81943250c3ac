"""Official key names in memory and on disk, official directories, and the tensors that are kept but not run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from golden_files import GOLDEN, golden_json
from golden_model import distance, golden_case, golden_config, golden_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from phi3v_train.models.phi3v import Phi3VConfig, Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_tokenizer

KEYS = set(golden_json("checkpoint/keys.json"))
NUM_OFFICIAL_KEYS = 592
NUM_OFFICIAL_PARAMETERS = 4_146_621_440
NUM_SHELVED_PARAMETERS = 12_596_224 + 2_048
"""The last layer of CLIP ViT-L and its final norm."""

ROPE = {"type": "su", "short_factor": [1.05] * 48, "long_factor": [2.5] * 48}


def official_config() -> Phi3VConfig:
    return Phi3VConfig(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        sliding_window=131072,
        rope_theta=10000.0,
        rope_scaling=ROPE,
        bos_token_id=1,
        eos_token_id=2,
    )


def tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def shelved(names: set[str]) -> set[str]:
    return {name for name in names if re.search(r"encoder\.layers\.3\.|post_layernorm", name)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The golden model, saved in shards."""
    golden_model().save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    return tmp_path / "saved"


def test_keys_in_memory_are_the_official_ones_and_all_tensors_are_loaded() -> None:
    state = golden_model().state_dict()
    expected = load_file(GOLDEN / "checkpoint" / "model.safetensors")
    assert set(state) == KEYS
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_full_size_model_has_the_official_names_and_parameters() -> None:
    with torch.device("meta"):
        model = Phi3VForConditionalGeneration(official_config())
    state = model.state_dict()
    assert len(state) == NUM_OFFICIAL_KEYS
    assert sum(tensor.numel() for tensor in state.values()) == NUM_OFFICIAL_PARAMETERS
    assert sum(p.numel() for p in model.parameters()) == NUM_OFFICIAL_PARAMETERS - NUM_SHELVED_PARAMETERS
    assert model.generation_config.eos_token_id == [32000, 32001, 32007]
    assert model.generation_config.pad_token_id == 32000
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("shard_size", ["200KB", "5GB"])
def test_training_keeps_the_tensors_that_are_not_run(tmp_path: Path, shard_size: str) -> None:
    """Load, train, save, load, save: the last layer and final norm of the tower stay, everything else has moved."""
    model, case = golden_model().train(), golden_case("wide_nc4")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**case.inputs, labels=case.labels).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "once", max_shard_size=shard_size)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "once", dtype=torch.float32)
    again.save_pretrained(tmp_path / "twice", max_shard_size=shard_size)
    after = tensors_in(tmp_path / "twice")
    assert set(after) == KEYS
    assert (tmp_path / "twice" / "model.safetensors.index.json").exists() == (shard_size == "200KB")
    kept = shelved(KEYS)
    assert len(kept) == 18
    assert {name for name in KEYS if torch.equal(before[name], after[name])} == kept


def test_config_on_disk_has_the_official_layout(saved: Path) -> None:
    written = json.loads((saved / "config.json").read_text())
    official = golden_json("checkpoint/config.json")
    for key in (
        "architectures",
        "model_type",
        "rope_theta",
        "rope_scaling",
        "sliding_window",
        "embd_layer",
        "original_max_position_embeddings",
        "max_position_embeddings",
        "torch_dtype",
    ):
        assert written[key] == official[key]
    assert set(written["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert not {"rope_parameters", "auto_map", "_attn_implementation", "layer_types"} & set(written)
    assert AutoConfig.from_pretrained(saved).to_dict() == AutoConfig.from_pretrained(saved).to_dict()
    assert AutoConfig.from_pretrained(saved).rope_parameters == golden_config().rope_parameters


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_a_directory_laid_out_like_the_official_one_loads_without_its_code(saved: Path, auto: type) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    }
    config |= {"_attn_implementation": "flash_attention_2", "transformers_version": "4.38.1"}
    del config["dtype"]
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "generation_config.json").unlink()
    model = auto.from_pretrained(saved)
    assert type(model) is Phi3VForConditionalGeneration
    assert model.config._attn_implementation == "sdpa"
    case = golden_case("wide_nc4")
    logits = model(**case.inputs).logits[0][case.tensors["logits_positions"]]
    assert distance(logits, case.tensors["logits"]) < 1e-4


def test_stop_ids_come_from_generation_config_else_from_the_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    names = ["<|endoftext|>", "<|assistant|>", "<|end|>"]
    expected = tokenizer.convert_tokens_to_ids(names)
    assert model.generation_config.eos_token_id == expected
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == expected
    assert Phi3VForConditionalGeneration.from_pretrained(tmp_path).generation_config.eos_token_id == expected
    (tmp_path / "generation_config.json").unlink()
    assert Phi3VForConditionalGeneration.from_pretrained(tmp_path).generation_config.eos_token_id != expected
    tokenizer.save_pretrained(tmp_path)
    assert Phi3VForConditionalGeneration.from_pretrained(tmp_path).generation_config.eos_token_id == expected


def test_half_precision_keeps_frequencies_in_fp32() -> None:
    exact = golden_model()
    for model in (golden_model(dtype=torch.bfloat16), golden_model().to(torch.bfloat16), golden_model().bfloat16()):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
        device = torch.device("cpu")
        assert torch.equal(model.model.rotary_emb.inv_freq(device), exact.model.rotary_emb.inv_freq(device))
        case = golden_case("wide_nc4")
        loss = model(**case.inputs, labels=case.labels).loss
        assert loss.dtype == torch.float32
        assert abs(loss.item() - case.figures["loss"]) < 0.05


def test_the_caller_s_dictionaries_are_left_alone() -> None:
    rope, tower = json.loads(json.dumps(ROPE)), {"image_dim_out": 1024}
    for _ in range(2):
        Phi3VConfig(max_position_embeddings=131072, rope_scaling=rope, rope_theta=10000.0, img_processor=tower)
    assert rope == ROPE
    assert tower == {"image_dim_out": 1024}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sliding_window": 100}, "sliding_window .100. is shorter"),
        ({"img_processor": {"type_feature": "cls_patch"}}, "type_feature"),
        ({"img_processor": {"layer_idx": -40}}, "layer_idx"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "hd_transform_order"),
    ],
)
def test_settings_that_the_model_cannot_honour_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phi3VConfig(**overrides)


def test_a_tower_of_another_width_without_its_sizes_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="image_dim_out is 64, but the vision tower is 1024"):
        Phi3VForConditionalGeneration(Phi3VConfig(img_processor={"image_dim_out": 64}))


def test_a_checkpoint_without_the_unused_layer_still_loads(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "part")
    kept = {n: t for n, t in load_file(GOLDEN / "checkpoint" / "model.safetensors").items() if not shelved({n})}
    save_file(kept, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    model, info = Phi3VForConditionalGeneration.from_pretrained(
        tmp_path / "part", config=golden_config(), dtype=torch.float32, output_loading_info=True
    )
    assert set(info["missing_keys"]) == shelved(KEYS)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert set(model.state_dict()) == KEYS


def test_tiny_model_depends_on_its_seed_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = tiny_model(7).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second, other = tiny_model(7).state_dict(), tiny_model(8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
