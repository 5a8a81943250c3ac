"""A loss for each data source in `metrics.jsonl`, where a run has several."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from processes import train_together
from run_dirs import read_lines, settings_for

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.collate import collate
from phi3v_train.data.sources import open_source, unique_names
from phi3v_train.models.loading import load_base
from phi3v_train.plan import make_plan
from phi3v_train.plan_report import plan_lines
from phi3v_train.run import run as train
from phi3v_train.settings import resolve
from phi3v_train.training.plot import draw_loss

STILL = {"learning_rate": 1e-9, "max_steps": 3, "logging_steps": 1}
"""The weights stay as they are, so that every step's loss can be computed from the model before training."""


def number_directory(directory: Path, rows: int) -> Path:
    """Sums as text."""
    directory.mkdir(parents=True)
    samples = [
        Sample(
            id=f"train-{n:010d}",
            source="sums",
            conversations=(Turn(user=f"{n} plus {n}?", assistant=f"It is {2 * n} of course, the double of {n}"),),
        )
        for n in range(rows)
    ]
    (directory / "sums_train.jsonl").write_text("".join(sample.to_json() + "\n" for sample in samples))
    return directory


@pytest.fixture(scope="module")
def data_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("sources")
    return [str(colour_directory(root / "colours", rows=7)), str(number_directory(root / "sums", rows=4))]


def settings(data_dirs: list[str], output_dir: Path, **changes: Any) -> dict[str, Any]:
    return {**settings_for(Path(), output_dir, **{**STILL, **changes}), "data_dir": data_dirs}


def expected_lines(options: dict[str, Any]) -> list[dict[str, float]]:
    """Losses of each step: plain forward passes over one sample at a time, and means over their tokens by source."""
    plan = make_plan(resolve(options))
    model = load_base(plan.files, plan.compute, seed=plan.config.optim.seed).eval()
    reader, lines = plan.reader(), []
    for step in range(plan.total_steps):
        losses: dict[str, list[float]] = {"colours": [], "sums": []}
        for ref in plan.order.batch(step):
            inputs = collate([reader.encode(ref)], plan.renderer)
            targets = inputs.pop("labels")[0, 1:]
            with torch.no_grad():
                scores = torch.log_softmax(model(**inputs).logits[0, :-1].double(), -1)
            kept = targets != -100
            found = -scores[kept].gather(1, targets[kept, None])[:, 0]
            losses[("colours", "sums")[ref.source]] += found.tolist()
        every = [each for found in losses.values() for each in found]
        means = {f"loss/{name}": sum(found) / len(found) for name, found in losses.items() if found}
        lines.append({"loss": sum(every) / len(every), **means})
    return lines


def found_lines(output_dir: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key.startswith("loss")}
        for line in read_lines(output_dir / "metrics.jsonl")
    ]


def assert_lines(output_dir: Path, expected: list[dict[str, float]]) -> None:
    found = found_lines(output_dir)
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, wanted in zip(found, expected, strict=True):
        assert line == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size_per_gpu": 2}, {"batch_size_per_gpu": 2, "pack": True}],
    ids=["accumulated", "packed"],
)
def test_each_source_has_the_mean_loss_of_its_tokens(
    data_dirs: list[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Also where the samples of a micro-batch come from both; a source without a sample in a step has no loss there."""
    options = settings(data_dirs, tmp_path / "out", **changes)
    expected = expected_lines(options)
    assert {"loss", "loss/colours", "loss/sums"} in [line.keys() for line in expected]
    train(resolve(options), quiet=True)
    assert_lines(tmp_path / "out", expected)


@pytest.mark.slow
def test_two_processes_sum_the_losses_of_each_source(data_dirs: list[str], tmp_path: Path) -> None:
    """With accumulation."""
    one = settings(data_dirs, tmp_path / "one", batch_size_per_gpu=1)
    runs = [{**one, "output_dir": str(tmp_path / name), "parallel": name} for name in ("ddp", "fsdp")]
    train_together(2, runs, tmp_path)
    expected = expected_lines(one)
    for name in ("ddp", "fsdp"):
        assert_lines(tmp_path / name, expected)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_two_processes_of_deepspeed_sum_the_losses_of_each_source(
    data_dirs: list[str], tmp_path: Path, strategy: str
) -> None:
    pytest.importorskip("deepspeed")
    options = settings(data_dirs, tmp_path / "out", batch_size_per_gpu=1, parallel=strategy)
    train_together(2, [options], tmp_path)
    assert_lines(tmp_path / "out", expected_lines({**options, "parallel": "auto"}))


def test_the_loss_of_all_is_the_same_bits_without_those_of_the_sources(
    data_dirs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = settings(data_dirs, tmp_path / "several", batch_size_per_gpu=2, learning_rate=1e-3, max_steps=2)
    train(resolve(several), quiet=True)
    monkeypatch.setattr("phi3v_train.plan.Plan.source_names", ())
    train(resolve({**several, "output_dir": str(tmp_path / "none")}), quiet=True)
    with_sources, without = found_lines(tmp_path / "several"), found_lines(tmp_path / "none")
    assert [line["loss"] for line in with_sources] == [line["loss"] for line in without]
    assert all(line.keys() == {"loss"} for line in without)


def test_one_source_has_no_loss_of_its_own(data_dirs: list[str], tmp_path: Path) -> None:
    train(resolve(settings(data_dirs[:1], tmp_path / "out", max_steps=1)), quiet=True)
    assert [line.keys() for line in found_lines(tmp_path / "out")] == [{"loss"}]


def test_the_plan_shows_the_names(tmp_path: Path) -> None:
    """As the keys have them; of two directories of one name the second gets a number."""
    data_dirs = [str(number_directory(tmp_path / parent / "sums", rows=2)) for parent in "ab"]
    plan = make_plan(resolve(settings(data_dirs, tmp_path / "out")))
    shown = [text.partition(": ")[0] for what, text in plan_lines(plan, run_state="begins") if what == "data"]
    assert shown == ["sums", "sums (2)"]


def test_a_directory_called_total_gets_another_key(tmp_path: Path) -> None:
    """`total` is the key of the loss of all."""
    source = open_source(number_directory(tmp_path / "total", 1), "train")
    assert unique_names([source, source]) == ("total (2)", "total (3)")


def test_the_plot_has_a_line_for_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    lines = [
        {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "loss/a": 1.0, "loss/b": 3.0},
        {"step": 2, "loss": 1.5, "lr": 0.1, "grad_norm": 1.0, "loss/b": 1.5},
    ]
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    draw_loss(json.loads(json.dumps(lines)), tmp_path / "loss.png", title="two sources")
    curves = {str(line.get_label()): line.get_xydata().tolist() for line in drawn[0].axes[0].get_lines()}
    assert curves["a"] == [[1.0, 1.0]]
    assert [x for x, _ in curves["b"]] == [1.0, 2.0]
