"""One step is the same step however the global batch is divided."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from run_dirs import settings_for

from phi3v_data.schema import Sample, Turn
from phi3v_train.config import OptimConfig
from phi3v_train.data.loader import MicroBatch, StepBatch, TrainLoader
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.loss import mean_loss
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor
from phi3v_train.plan import Plan, make_plan
from phi3v_train.precision import Precision
from phi3v_train.settings import resolve
from phi3v_train.training.loop import NonFiniteLossError, StepResult, TrainLoop
from phi3v_train.training.methods import apply_method
from phi3v_train.training.optimizer import make_optimizer, rate_factor, set_rates
from phi3v_train.training.parallel.single import SingleEngine
from phi3v_train.training.seeds import derive_seed

CPU = torch.device("cpu")
FP32 = Precision("fp32", "cpu")
ALONE = SingleProcess(CPU)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=10)


def planned(data_dir: Path, **changes: Any) -> Plan:
    return make_plan(resolve(settings_for(data_dir, data_dir / "out", **{"warmup_steps": 0, **changes})))


def make_loop(plan: Plan) -> TrainLoop:
    trained = apply_method(tiny_model(), plan.config.method, FP32, seed=0, device=CPU)
    engine = SingleEngine(ALONE, trained, FP32, plan.config.optim)
    return TrainLoop(engine, plan.config, total_steps=plan.total_steps)


def make_loader(plan: Plan) -> TrainLoader:
    return TrainLoader(
        plan.reader(),
        plan.order,
        micro_batch_size=plan.config.optim.batch_size_per_gpu,
        pack=plan.config.data.pack,
    )


def trajectory(plan: Plan, steps: int = 3) -> tuple[list[StepResult], dict[str, torch.Tensor]]:
    """Results and weights after a few steps; the third step of ten rows in fours is a short one."""
    loop = make_loop(plan)
    results: list[StepResult] = []
    with make_loader(plan) as loader:
        loop.run(loader.steps(0, steps), results.append)
    return results, {name: value.detach().clone() for name, value in loop.engine.trained.trainable()}


@cache
def undivided(data_dir: Path, **method: Any) -> tuple[list[StepResult], dict[str, torch.Tensor]]:
    return trajectory(planned(data_dir, learning_rate=1e-4, batch_size_per_gpu=4, **method))


@pytest.mark.parametrize("method", [{}, {"use_lora": True, "lora_rank": 4}, {"freeze_vision_model": True}])
@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size_per_gpu": 1},
        {"batch_size_per_gpu": 2},
        {"batch_size_per_gpu": 2, "pack": True},
        {"batch_size_per_gpu": 4, "pack": True},
    ],
    ids=["accumulated", "half", "packed in two", "packed in one"],
)
def test_loss_and_weights_do_not_depend_on_the_division(
    data_dir: Path, changes: dict[str, Any], method: dict[str, Any]
) -> None:
    whole, expected = undivided(data_dir, **method)
    results, weights = trajectory(planned(data_dir, learning_rate=1e-4, **changes, **method))
    for one, other in zip(whole, results, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-6)
        assert other.num_supervised == one.num_supervised
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(data_dir: Path) -> None:
    from phi3v_train.build import enable_checkpointing

    plan = planned(data_dir)
    _, expected = trajectory(plan, steps=1)
    loop = make_loop(plan)
    enable_checkpointing(loop.engine.trained.model)
    with make_loader(plan) as loader:
        loop.run(loader.steps(0, 1), lambda result: None)
    for name, value in loop.engine.trained.trainable():
        torch.testing.assert_close(value.detach(), expected[name], rtol=0, atol=1e-7)


def test_loss_is_the_mean_over_supervised_tokens(data_dir: Path) -> None:
    plan = planned(data_dir, batch_size=4, batch_size_per_gpu=1)
    results, _ = trajectory(plan, steps=1)
    model = tiny_model().train()
    total, tokens = 0.0, 0
    with make_loader(plan) as loader, torch.no_grad():
        for micro in next(iter(loader.steps(0, 1))):
            total += model(**micro.inputs).loss.item() * micro.num_supervised
            tokens += micro.num_supervised
    assert tokens == results[0].num_supervised
    assert results[0].loss == pytest.approx(total / tokens, abs=1e-6)


def test_held_out_loss_is_weighted_by_tokens(data_dir: Path) -> None:
    plan = planned(data_dir)
    losses = []
    for size in (1, 3):
        changed = planned(data_dir, batch_size=3, batch_size_per_gpu=size)
        with make_loader(changed) as loader:
            micros = [micro for step in loader.steps(0, changed.order.epoch_steps) for micro in step]
        losses.append(mean_loss(tiny_model(), micros, precision=FP32, group=ALONE))
    assert plan.order.epoch_samples == 10
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def without_labels(batch: StepBatch) -> StepBatch:
    micros = [
        MicroBatch(
            {**micro.inputs, "labels": torch.full_like(micro.inputs["labels"], -100)},
            micro.shape,
            (),
            (),
            micro.token_sources[:0],
        )
        for micro in batch
    ]
    plan = batch.plan
    measures = tuple(
        type(each)(each.provenance, each.cost, 0, each.num_images, each.dropped_turns) for each in plan.measures
    )
    return StepBatch(type(plan)(plan.step, plan.epoch, plan.refs, measures, plan.micro_batches), iter(micros))


def test_a_step_without_labels_is_zero_and_not_nan(data_dir: Path) -> None:
    plan = planned(data_dir)
    loop = make_loop(plan)
    before = {name: value.detach().clone() for name, value in loop.engine.trained.trainable()}
    with make_loader(plan) as loader:
        results: list[StepResult] = []
        loop.run([without_labels(next(iter(loader.steps(0, 1))))], results.append)
    assert results[0].loss == 0.0
    assert results[0].grad_norm == 0.0
    for name, value in loop.engine.trained.trainable():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_samples(data_dir: Path) -> None:
    plan = planned(data_dir, batch_size_per_gpu=1)
    loop = make_loop(plan)
    with torch.no_grad():
        loop.engine.trained.model.lm_head.weight[0, 0] = float("nan")
    before = {name: value.detach().clone() for name, value in loop.engine.trained.trainable()}
    with make_loader(plan) as loader:
        batch = next(iter(loader.steps(2, 3)))
        with pytest.raises(NonFiniteLossError, match="step 3: the loss is nan") as caught:
            loop.run([batch], lambda result: None)
    assert all(measure.provenance.id in str(caught.value) for measure in batch.plan.measures)
    for name, value in loop.engine.trained.trainable():
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=0, equal_nan=True)


def test_a_gradient_that_is_not_finite_stops_too(data_dir: Path) -> None:
    plan = planned(data_dir)
    loop = make_loop(plan)
    loop.engine.trained.model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with make_loader(plan) as loader, pytest.raises(NonFiniteLossError, match="the gradient's norm is"):
        loop.run(loader.steps(0, 1), lambda result: None)


def test_out_of_memory_says_what_to_lower(data_dir: Path) -> None:
    from phi3v_data.errors import UserError

    def refuse(*_: Any) -> None:
        torch.empty(1 << 60)  # more than any machine has

    for changes, advice in (
        ({"batch_size_per_gpu": 2}, "lower --batch_size_per_gpu from 2"),
        ({"batch_size_per_gpu": 1}, "leave out --no_gradient_checkpointing"),
        ({"batch_size_per_gpu": 1, "gradient_checkpointing": True}, "train with --use_lora"),
        ({"batch_size_per_gpu": 1, "gradient_checkpointing": True, "use_lora": True}, "lower --num_crops from 1"),
    ):
        plan = planned(data_dir, **changes)
        loop = make_loop(plan)
        loop.engine.trained.model.lm_head.register_forward_pre_hook(refuse)
        with make_loader(plan) as loader, pytest.raises(UserError, match="out of memory in step 1") as caught:
            loop.run(loader.steps(0, 1), lambda result: None)
        assert advice in str(caught.value)


def test_dropout_is_seeded_by_samples_and_not_by_division(data_dir: Path) -> None:
    values = {"use_lora": True, "lora_rank": 4, "lora_dropout": 0.5}
    first = trajectory(planned(data_dir, **values))
    torch.manual_seed(99)
    again = trajectory(planned(data_dir, **values))
    other = trajectory(planned(data_dir, seed=1, **values))
    assert [each.loss for each in first[0]] == [each.loss for each in again[0]]
    assert all(torch.equal(first[1][name], again[1][name]) for name in first[1])
    assert [each.loss for each in first[0]] != [each.loss for each in other[0]]


def test_learning_rate_follows_transformers_schedules() -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for kind, make in (("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)):
        for warmup, total in ((0, 7), (3, 10), (50, 12)):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = make(optimizer, warmup, total)
            config = OptimConfig(lr_scheduler=kind, warmup_steps=warmup)
            for step in range(total):
                assert rate_factor(step, total, config) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
                optimizer.step()
                schedule.step()
    assert rate_factor(9, 10, OptimConfig(lr_scheduler="constant", warmup_steps=0)) == 1.0


RATES_AND_DECAY = {
    "model.embed_tokens.weight": (5e-5, 0.1),
    "model.layers.0.input_layernorm.weight": (5e-5, 0.0),
    "model.layers.1.self_attn.qkv_proj.weight": (5e-5, 0.1),
    "model.norm.weight": (5e-5, 0.0),
    "lm_head.weight": (5e-5, 0.1),
    "model.vision_embed_tokens.img_processor.vision_model.embeddings.position_embedding.weight": (5e-6, 0.1),
    "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.layer_norm1.weight": (5e-6, 0.0),
    "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.weight": (5e-6, 0.1),
    "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.bias": (5e-6, 0.0),
    "model.vision_embed_tokens.img_projection.0.weight": (1e-5, 0.1),
    "model.vision_embed_tokens.img_projection.0.bias": (1e-5, 0.0),
    "model.vision_embed_tokens.glb_GN": (1e-5, 0.0),
    "model.vision_embed_tokens.sub_GN": (1e-5, 0.0),
}
"""Half of the highest rates 1e-4, 1e-5 and 2e-5 of the language model, the tower and the projector; decay 0.1."""


def rates_and_decay(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """By parameter name: learning rate and weight decay."""
    groups = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(parameter)] for name, parameter in MODEL.named_parameters()}


MODEL = tiny_model()


def test_each_component_has_its_own_rate_and_vectors_do_not_decay() -> None:
    config = OptimConfig(learning_rate=1e-4, vision_learning_rate=1e-5, projector_learning_rate=2e-5, wd=0.1)
    optimizer = make_optimizer(MODEL.named_parameters(), config, PHI3V)
    assert set_rates(optimizer, 0.5) == 5e-5
    found = rates_and_decay(optimizer)
    for name, (rate, decay) in RATES_AND_DECAY.items():
        assert found[name] == (pytest.approx(rate), decay), name
    assert (
        PHI3V.part_of("base_model.model.model.vision_embed_tokens.img_projection.0.lora_A.default.weight")
        == "projector"
    )


def test_rates_that_are_not_given_are_the_learning_rate() -> None:
    optimizer = make_optimizer(MODEL.named_parameters(), OptimConfig(learning_rate=1e-4, wd=0.1), PHI3V)
    assert {rate for rate, _ in rates_and_decay(optimizer).values()} == {1e-4}
    optimizer = make_optimizer(
        MODEL.named_parameters(), OptimConfig(learning_rate=1e-4, vision_learning_rate=1e-6), PHI3V
    )
    found = rates_and_decay(optimizer)
    assert found["model.vision_embed_tokens.img_projection.0.weight"][0] == 1e-4
    assert found["model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.bias"][0] == 1e-6


def test_adamw_takes_the_sample_s_betas_and_epsilon() -> None:
    """Of the Phi-3.5-vision sample: .9, .95 and 1e-7."""
    optimizer = make_optimizer(MODEL.named_parameters(), OptimConfig(), PHI3V)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.95), 1e-7)
    other = make_optimizer(
        MODEL.named_parameters(), OptimConfig(adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6), PHI3V
    )
    assert (other.defaults["betas"], other.defaults["eps"]) == ((0.8, 0.99), 1e-6)


def test_the_logged_rates_of_warm_up_and_decay(data_dir: Path) -> None:
    """1e-3 over 4 steps, one of them warm-up: 0, the highest, then a line that would meet 0 at step 4."""
    plan = planned(data_dir, learning_rate=1e-3, warmup_steps=1, max_steps=4)
    results, _ = trajectory(plan, steps=4)
    assert [each.lr for each in results] == pytest.approx([0.0, 1e-3, 6.6667e-4, 3.3333e-4], rel=1e-4)


@pytest.mark.slow
def test_dropout_differs_from_epoch_to_epoch_for_the_same_rows(data_dir: Path) -> None:
    """A rate too small to move an fp32 weight: nothing but the mask of an epoch can move the loss."""
    found = {}
    for dropout in (0.5, 0.0):
        lora = {"use_lora": True, "lora_rank": 4, "lora_dropout": dropout}
        every_row = {"batch_size": 10, "batch_size_per_gpu": 10, "num_train_epochs": 2}
        plan = planned(data_dir, **{**lora, **every_row, "learning_rate": 1e-30})
        loop = make_loop(plan)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in loop.engine.trained.trainable():
                if "lora_B" in name:  # it starts at 0, which would hide the mask
                    value.normal_(std=0.5, generator=generator)
        results: list[StepResult] = []
        with make_loader(plan) as loader:
            loop.run(loader.steps(0, 2), results.append)
        found[dropout] = abs(results[0].loss - results[1].loss)
    assert found[0.0] < 1e-5
    assert found[0.5] > 1e-3


def test_seeds_differ_by_place() -> None:
    seeds = {derive_seed(0, "step", step, name) for step in range(50) for name in ("a", "b")}
    assert len(seeds) == 100
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_text_alone_trains_with_the_tower_in_place(tmp_path: Path) -> None:
    from sample_dirs import write_rows

    rows = [
        Sample(id=f"t-{n}", source="s", conversations=(Turn(user=f"Say {n}", assistant=f"It is {n}"),))
        for n in range(4)
    ]
    plan = planned(write_rows(tmp_path, rows))
    results, weights = trajectory(plan, steps=1)
    assert results[0].num_images == 0
    assert results[0].loss > 0
    assert all(torch.isfinite(value).all() for value in weights.values())


def fp16_loop(data_dir: Path, **changes: Any) -> TrainLoop:
    """A loop in fp16 with the loss scale of GradScaler, 2^16 at first; the learning rate leaves the weights alone."""
    plan = planned(data_dir, **{"learning_rate": 1e-30, "dtype": "fp16", **changes})
    precision = Precision("fp16", "cpu")
    trained = apply_method(tiny_model(), plan.config.method, precision, seed=0, device=CPU)
    engine = SingleEngine(ALONE, trained, precision, plan.config.optim)
    return TrainLoop(engine, plan.config, total_steps=plan.total_steps)


def test_fp16_gradients_are_clipped_after_they_are_unscaled(data_dir: Path) -> None:
    plan = planned(data_dir, learning_rate=1e-30)
    norms = []
    for loop in (make_loop(plan), fp16_loop(data_dir)):
        results: list[StepResult] = []
        with make_loader(plan) as loader:
            loop.run(loader.steps(0, 1), results.append)
        norms.append(results[0].grad_norm)
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


def test_the_loss_scale_is_resumed(data_dir: Path, tmp_path: Path) -> None:
    first, second = fp16_loop(data_dir), fp16_loop(data_dir)
    with make_loader(planned(data_dir)) as loader:
        first.run(loader.steps(0, 1), lambda result: None)
    first.engine.scaler.update(1024.0)
    first.engine.write(tmp_path, tiny_processor(1))
    second.engine.read(tmp_path)
    assert second.engine.scaler.get_scale() == 1024.0
