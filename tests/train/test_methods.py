"""The parameters that each method trains: which change in a step, and which do not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from colour_sets import colour_directory
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from run_dirs import settings_for
from safetensors.torch import load_file, save_file

from phi3v_data.errors import UserError
from phi3v_train.config import MethodConfig
from phi3v_train.data.loader import TrainLoader
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.parse_config import parse_config
from phi3v_train.plan import Plan, make_plan
from phi3v_train.precision import Precision
from phi3v_train.settings import resolve
from phi3v_train.training.folder import config_text
from phi3v_train.training.loop import TrainLoop
from phi3v_train.training.memory import estimate
from phi3v_train.training.methods import add_adapters, apply_method, quantize
from phi3v_train.training.parallel.single import SingleEngine
from phi3v_train.training.saving import read_model
from phi3v_train.training.targets import lora_targets

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"))


def planned(data_dir: Path, **changes: Any) -> Plan:
    return make_plan(resolve(settings_for(data_dir, data_dir / "out", warmup_steps=0, **changes)))


def one_step(plan: Plan, *, dtype: str = "fp32", steps: int = 1) -> tuple[TrainLoop, dict[str, torch.Tensor]]:
    """The loop after `steps` steps, and the tensors of the model as they were before."""
    precision = Precision(dtype, "cpu")
    trained = apply_method(tiny_model(), plan.config.method, precision, seed=0, device=CPU)
    before = {name: tensor.detach().clone() for name, tensor in tensors(trained.model).items()}
    engine = SingleEngine(SingleProcess(CPU), trained, precision, plan.config.optim)
    loop = TrainLoop(engine, plan.config, total_steps=100)
    with TrainLoader(plan.reader(), plan.order, micro_batch_size=2) as loader:
        loop.run(loader.steps(0, steps), lambda result: None)
    return loop, before


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def moved(loop: TrainLoop, before: dict[str, torch.Tensor]) -> set[str]:
    after = tensors(loop.engine.trained.model)
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


PARTS = {
    "full": ({}, {"language", "vision", "projector"}),
    "frozen vision": ({"freeze_vision_model": True}, {"language"}),
    "frozen language": ({"freeze_language_model": True}, {"vision", "projector"}),
    "lora": ({"use_lora": True}, {"language", "vision", "projector"}),
    "lora language": ({"use_lora": True, "freeze_vision_model": True}, {"language"}),
    "lora vision": ({"use_lora": True, "freeze_language_model": True}, {"vision", "projector"}),
    "dora": ({"use_lora": True, "use_dora": True}, {"language", "vision", "projector"}),
    "rslora": ({"use_lora": True, "use_rslora": True}, {"language", "vision", "projector"}),
    "qlora": ({"use_qlora": True}, {"language", "vision", "projector"}),
    "olora": ({"use_lora": True, "lora_init": "olora"}, {"language", "vision", "projector"}),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_trained_parameter_moves_and_nothing_else(data_dir: Path, name: str) -> None:
    values, parts = PARTS[name]
    loop, before = one_step(planned(data_dir, lora_rank=4, **values), steps=2)
    trainable = {name for name, _ in loop.engine.trained.trainable()}
    assert moved(loop, before) == trainable
    assert {PHI3V.part_of(each) for each in trainable} == parts
    if values.get("use_lora") or values.get("use_qlora"):
        assert all("lora_" in each for each in trainable)
        kinds = {each.split(".lora_")[1].split(".")[0] for each in trainable}
        assert kinds == ({"A", "B", "magnitude_vector"} if values.get("use_dora") else {"A", "B"})
    else:
        expected = {each for each, _ in loop.engine.trained.model.named_parameters() if PHI3V.part_of(each) in parts}
        assert trainable == expected


def test_lora_covers_every_linear_layer_that_runs() -> None:
    trained = apply_method(
        tiny_model(), MethodConfig(use_lora=True, lora_rank=2), Precision("fp32", "cpu"), seed=0, device=CPU
    )
    adapted = {name.split(".lora_A")[0] for name, _ in trained.trainable() if ".lora_A." in name}
    plain = {name for name, module in tiny_model().named_modules() if isinstance(module, torch.nn.Linear)}
    assert adapted == plain


def test_adapters_start_from_the_seed_alone() -> None:
    method = MethodConfig(use_lora=True, lora_rank=2)
    starts = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        trained = apply_method(tiny_model(), method, Precision("fp32", "cpu"), seed=7, device=CPU)
        starts.append({name: value.detach().clone() for name, value in trained.trainable()})
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_trained_weights_are_fp32_and_frozen_ones_in_the_compute_dtype(data_dir: Path, dtype: str) -> None:
    plan = planned(data_dir, freeze_vision_model=True, dtype=dtype)
    loop, before = one_step(plan, dtype=dtype)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for name, parameter in loop.engine.trained.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else expected), name
    assert moved(loop, before) == {name for name, _ in loop.engine.trained.trainable()}


def test_qlora_packs_the_decoder_and_keeps_gradients_after_an_evaluation(data_dir: Path) -> None:
    """On CPUs with AVX512-bf16 bitsandbytes would repack the weights at the first evaluation."""
    plan = planned(data_dir, use_qlora=True, lora_rank=4)

    def gradients(evaluate_first: bool) -> dict[str, torch.Tensor]:
        trained = apply_method(tiny_model(), plan.config.method, Precision("bf16", "cpu"), seed=0, device=CPU)
        model = trained.model
        with TrainLoader(plan.reader(), plan.order, micro_batch_size=4) as loader:
            micro = next(iter(next(iter(loader.steps(0, 1)))))
        if evaluate_first:
            model.eval()
            with torch.no_grad(), Precision("bf16", "cpu").autocast():
                model(**micro.inputs)
            model.train()
        with Precision("bf16", "cpu").autocast():
            model(**micro.inputs).loss.backward()
        return {name: value.grad for name, value in trained.trainable() if value.grad is not None}

    plain, after = gradients(False), gradients(True)
    assert plain.keys() == after.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], after[name], rtol=0, atol=0)
    trained = apply_method(tiny_model(), plan.config.method, Precision("bf16", "cpu"), seed=0, device=CPU)
    packed = {name for name, p in trained.model.named_parameters() if p.dtype == torch.uint8}
    assert packed
    assert all(".layers." in name and "vision_embed_tokens" not in name for name in packed)


def test_memory_arithmetic_counts_what_is_trained() -> None:
    config = tiny_model().config.to_dict()
    size = PHI3V.size(config)
    assert size.total == sum(tensor.numel() for tensor in stored(tiny_model()))
    for values, _ in PARTS.values():
        method = MethodConfig.model_validate({**values, "lora_rank": 4})
        trained = apply_method(tiny_model(), method, Precision("fp32", "cpu"), seed=0, device=CPU)
        estimated = estimate(size, method, dtype="fp32", tokens=100, tiles=2).trained
        assert estimated == sum(trained.counts().values()), values


def stored(model: Any) -> list[torch.Tensor]:
    return [tensor for name, tensor in model.state_dict().items() if "rotary" not in name]


def test_memory_of_the_released_model() -> None:
    """16 bytes a trained parameter; 592 tensors of 4,146,621,440 parameters."""
    size = PHI3V.size({})
    assert size.total == 4_146_621_440

    def gigabytes(**values: Any) -> float:
        method = MethodConfig.model_validate(values)
        return estimate(size, method, dtype="bf16", tokens=2443, tiles=17).state / 1e9

    assert gigabytes() == pytest.approx(66.2, abs=0.1)
    assert gigabytes(freeze_vision_model=True) == pytest.approx(61.8, abs=0.1)
    assert gigabytes(use_lora=True, lora_rank=32) == pytest.approx(8.3 + 1.05, abs=0.1)
    assert gigabytes(use_lora=True, lora_rank=128) == pytest.approx(8.3 + 4.2, abs=0.1)
    assert gigabytes(use_qlora=True, lora_rank=32) == pytest.approx(2.9 + 1.05, abs=0.1)


def test_pissa_niter_is_refused() -> None:
    with pytest.raises(UserError, match="do not reload to the same model"):
        parse_config({"use_lora": True, "lora_init": "pissa_niter_4"})


def test_targets_leave_out_the_frozen_part() -> None:
    assert "vision" not in lora_targets(MethodConfig(use_lora=True, freeze_vision_model=True), PHI3V.size({}))
    assert "lm_head" not in lora_targets(MethodConfig(use_lora=True, freeze_language_model=True), PHI3V.size({}))


@pytest.mark.parametrize(
    ("prefix", "name", "absent"),
    [
        ("model.layer", "o_proj", "'self_attn.qkv_proj', 'self_attn.o_proj', 'mlp.gate_up_proj', 'mlp.down_proj'"),
        ("model.layers", "o_prj", "'self_attn.o_prj'"),
    ],
    ids=["prefix", "name"],
)
def test_a_name_of_the_table_that_the_model_lacks_is_an_error(
    monkeypatch: pytest.MonkeyPatch, prefix: str, name: str, absent: str
) -> None:
    """Instead of no adapters or no 4-bit weights there; layers that --lora_targets leaves out are not looked for."""
    size = PHI3V.size(tiny_model().config.to_dict())
    table = []
    for group in size.table:
        if group.component == "language":
            linears = tuple(replace(each, name=each.name.replace("o_proj", name)) for each in group.linears)
            group = replace(group, prefix=prefix, linears=linears)
        table.append(group)
    monkeypatch.setattr(type(PHI3V), "size", lambda self, config: replace(size, table=tuple(table)))
    sentence = (
        f"the model family phi3v: the group language of its table names {absent} under '{prefix}', where the model has "
        "no such modules: correct `size` of the family"
    )
    for wanted in (None, "all-linear", r"model\..*"):
        model = tiny_model()
        with pytest.raises(UserError) as error:
            add_adapters(model, MethodConfig(use_lora=True, lora_targets=wanted), seed=0)
        assert str(error.value) == sentence
        assert not any(isinstance(module, LoraLayer) for module in model.modules())
    with pytest.raises(UserError) as error:
        quantize(tiny_model(), Precision("fp32", "cpu"))
    assert str(error.value) == sentence
    add_adapters(tiny_model(), MethodConfig(use_lora=True, lora_targets="fc1,lm_head"), seed=0)


ATTENTION = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in ("o", "qkv")]
TOWER = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers"


@pytest.mark.parametrize(
    ("targets", "more", "layers", "parameters"),
    [
        ("qkv_proj,o_proj", {}, ATTENTION, 2 * 4 * ((128 + 384) + (128 + 128))),
        ("self_attn.qkv_proj", {}, ATTENTION[1::2], 2 * 4 * (128 + 384)),
        (r"model\.layers\.1\.mlp\..*", {}, [f"model.layers.1.mlp.{n}_proj" for n in ("down", "gate_up")], 4 * 1024),
        ("fc1", {}, [f"{TOWER}.{layer}.mlp.fc1" for layer in (0, 1)], 2 * 4 * (64 + 128)),
        ("lm_head", {"use_dora": True}, ["lm_head"], None),
    ],
)
def test_adapters_on_chosen_layers(
    tmp_path: Path, data_dir: Path, targets: str, more: dict[str, Any], layers: list[str], parameters: int | None
) -> None:
    """By name, by a part of the full name, by a regular expression; the plan counts them, PEFT reads them."""
    plan = planned(data_dir, use_lora=True, lora_rank=4, lora_targets=targets, **more)
    trained = apply_method(tiny_model(), plan.config.method, Precision("fp32", "cpu"), seed=0, device=CPU)
    found = sorted(name for name, module in trained.model.named_modules() if isinstance(module, LoraLayer))
    assert found == layers
    assert plan.memory.trained == sum(trained.counts().values())
    if parameters is not None:
        assert plan.memory.trained == parameters
    trained.peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    again = sorted(name for name, module in loaded.base_model.model.named_modules() if isinstance(module, LoraLayer))
    assert again == layers
    assert f"  lora_targets: {yaml.safe_dump(targets).splitlines()[0]}  # option\n" in config_text(plan.settings)


def test_all_linear_leaves_out_the_head(data_dir: Path) -> None:
    method = MethodConfig(use_lora=True, lora_rank=4, lora_targets="all-linear")
    trained = apply_method(tiny_model(), method, Precision("fp32", "cpu"), seed=0, device=CPU)
    found = {name for name, module in trained.model.named_modules() if isinstance(module, LoraLayer)}
    everything = apply_method(
        tiny_model(), MethodConfig(use_lora=True, lora_rank=4), Precision("fp32", "cpu"), seed=0, device=CPU
    )
    assert {name for name, m in everything.model.named_modules() if isinstance(m, LoraLayer)} - found == {"lm_head"}
    assert len(found) == 2 * 4 + 2 * 6 + 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use_lora": True, "lora_targets": "q_porj"},
            "--lora_targets q_porj: matches no linear layer; examples: qkv_",
        ),
        ({"use_lora": True, "lora_targets": "fc1", "freeze_vision_model": True}, "no linear layer that is not frozen"),
        ({"lora_targets": "fc1"}, "--lora_targets fc1 is for LoRA: add --use_lora"),
        ({"use_lora": True, "lora_targets": "("}, "--lora_targets (: not a regular expression"),
    ],
)
def test_targets_that_are_not_layers_are_refused_by_the_plan(
    data_dir: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        planned(data_dir, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(("use_rslora", "scaling"), [(True, 4.0), (False, 2.0)])
def test_alpha_is_rank_times_ratio_and_rslora_divides_by_the_root_of_the_rank(
    tmp_path: Path, use_rslora: bool, scaling: float
) -> None:
    """Rank 4 and ratio 2: alpha 8, and 8 / sqrt(4) or 8 / 4 (rsLoRA: Kalajdzievski, 2023)."""
    method = MethodConfig(use_lora=True, lora_rank=4, lora_alpha_ratio=2.0, use_rslora=use_rslora)
    trained = apply_method(tiny_model(), method, Precision("fp32", "cpu"), seed=0, device=CPU)
    trained.peft_model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["use_rslora"]) == (4, 8, use_rslora)
    scalings = {module.scaling["default"] for module in trained.model.modules() if isinstance(module, LoraLayer)}
    assert scalings == {scaling}


def test_an_adapter_that_lacks_a_trained_tensor_is_not_taken(tmp_path: Path) -> None:
    """PEFT fills the gap with the start values and says nothing."""
    method = MethodConfig(use_lora=True, lora_rank=2)
    trained = apply_method(tiny_model(), method, Precision("fp32", "cpu"), seed=0, device=CPU)
    trained.peft_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    del weights["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.down_proj\.lora_B"):
        read_model(trained, tmp_path)
