"""FSDP2 between real processes over gloo: the same numbers as one process, from checkpoints in shards too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from in_process import make_cli
from processes import HERE, finish, start_ranks, train_together
from run_dirs import arguments, command, read_lines, settings_for, without_times
from safetensors.torch import load_file, save_file

from phi3v_data.errors import UserError
from phi3v_train.cli.app import main
from phi3v_train.config import MethodConfig
from phi3v_train.models.locate import locate
from phi3v_train.models.registry import family_names, get_family
from phi3v_train.run import run as train
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints
from phi3v_train.training.parallel.row_source import find_rows
from phi3v_train.training.parallel.shards import Part, Shards, write_shards
from phi3v_train.training.saving import own_state, stored_tensors

ACCUMULATED = {"batch_size_per_gpu": 1}
"""Two micro-batches per process, each of one sample: where one of them has no image, the other process's has."""

CASES: dict[str, dict[str, Any]] = {
    "accumulated": ACCUMULATED,
    "2 x 2": {"batch_size_per_gpu": 2},
    "packed": {"batch_size_per_gpu": 2, "pack": True},
    "frozen vision": {**ACCUMULATED, "freeze_vision_model": True, "gradient_checkpointing": True},
    "frozen language": {**ACCUMULATED, "freeze_language_model": True},
    "lora": {**ACCUMULATED, "use_lora": True, "lora_rank": 4, "lora_dropout": 0.5, "gradient_checkpointing": True},
    "little memory": {**ACCUMULATED, "parallel": "auto", "little_memory": True},
    "dora language": {**ACCUMULATED, "use_lora": True, "use_dora": True, "freeze_vision_model": True},
}


ROUGH = {
    "bf16": {**ACCUMULATED, "dtype": "bf16"},
    "bf16 lora": {**ACCUMULATED, "dtype": "bf16", "use_lora": True, "lora_rank": 4},
}
"""Not all is computed in fp32: norms take their weights rounded, one process does not."""

CASES |= ROUGH


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows in fours: the last step is a short one, and some micro-batches have no image."""
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def settings(data_dir: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    return settings_for(data_dir, output_dir, **{"learning_rate": 1e-4, "max_steps": 4, **changes})


def shared(data_dir: Path, output_dir: Path, *more: str, **changes: Any) -> Any:
    """A run of two processes, from the command line."""
    options = arguments(settings(data_dir, output_dir, **{"parallel": "fsdp", **changes}))
    return command("run", *options, "--skip_validation", "--num_processes", "2", *more)


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    (path,) = (output_dir / "model").glob("*model.safetensors")
    return load_file(path)


def assert_same(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    for first, second in zip(read_lines(one / "metrics.jsonl"), read_lines(other / "metrics.jsonl"), strict=True):
        for name in ("loss", "eval_loss"):
            assert first.get(name) == pytest.approx(second.get(name), abs=tolerance)
        assert first.get("supervised_tokens") == second.get("supervised_tokens")
        assert first.get("lr") == second.get("lr")
        if "grad_norm" in first:  # not before the first step
            assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(data_dir: Path, tmp_path: Path) -> None:
    """Before a step, with equal weights, predictions are equal to the last digit."""
    changes = {**ACCUMULATED, "gradient_checkpointing": True, "eval_before": True, "eval_batch_size": 2}
    train(resolve(settings(data_dir, tmp_path / "one", max_new_tokens=3, **changes)), quiet=True)
    double = shared(data_dir, tmp_path / "two", max_new_tokens=3, **changes)
    assert double.returncode == 0, double.stderr
    assert "fsdp (asked for); 2 processes" in double.stderr
    assert double.stderr.count("compute  cpu") == 1
    assert double.stdout.count("complete after 4 steps") == 1
    assert_same(tmp_path / "one", tmp_path / "two")
    file = Path("predictions/step-000000/predictions.jsonl")
    assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    checkpoint = list_checkpoints(tmp_path / "two")[-1].path
    assert len(list((checkpoint / "shards").glob("*.safetensors"))) == 2
    assert not list(checkpoint.glob("*.safetensors"))
    refused = command("eval", "--model_name_or_path", str(checkpoint), "--data_dir", str(data_dir), "--device", "cpu")
    assert refused.returncode == 2
    assert f"{checkpoint}: is a checkpoint in shards" in refused.stderr
    assert "phi3v-train merge DIR OUT" in refused.stderr
    merged = command("merge", str(checkpoint), str(tmp_path / "merged"))
    assert merged.stdout == f"{tmp_path / 'merged'}: a model directory in fp32\n", merged.stderr
    for path in (tmp_path / "two" / "model").iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()
    assert_damage_of_a_shard_is_named(data_dir, tmp_path / "two", changes)


def assert_damage_of_a_shard_is_named(data_dir: Path, output_dir: Path, changes: dict[str, Any]) -> None:
    """One bit of what rank 1 wrote: its digest is in the list of rank 0, and any number of processes sees it."""
    checkpoint = list_checkpoints(output_dir)[-1].path
    listed = json.loads((checkpoint / "COMPLETE.json").read_text())
    assert listed["files"].keys() == listed["xxh3_128"].keys()
    shard = checkpoint / "shards" / "rank-00001-of-00002-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    words = "shards/rank-00001-of-00002-00000.safetensors is not what was written"
    refused = command("merge", str(checkpoint), str(output_dir / "merged"))
    assert refused.returncode == 2
    assert words in refused.stderr
    (output_dir / "complete.json").unlink()
    resumed = command("run", *arguments(settings(data_dir, output_dir, max_new_tokens=3, **changes)), "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert f"warning: {checkpoint.name} cannot be used: {words}\nresuming from checkpoint-000003\n" in resumed.stderr


@pytest.fixture(scope="module")
def cases(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process and by two, which stay together for all of them."""
    work = tmp_path_factory.mktemp("cases")
    for name, changes in CASES.items():
        alone = {key: value for key, value in changes.items() if key not in ("parallel", "little_memory")}
        train(resolve(settings(data_dir, work / name / "one", **alone)), quiet=True)
    runs = [
        settings(data_dir, work / name / "two", **{"parallel": "fsdp", **changes}) for name, changes in CASES.items()
    ]
    train_together(2, runs, work)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_loss_and_weights_are_those_of_one_process(cases: Path, name: str) -> None:
    """Where memory is short, `auto` takes FSDP, and gradients are divided after every micro-batch."""
    if name in ROUGH:
        lines = [read_lines(cases / name / run / "metrics.jsonl") for run in ("one", "two")]
        for one, two in zip(*lines, strict=True):
            assert one["loss"] == pytest.approx(two["loss"], abs=0.02)
    else:
        assert_same(cases / name / "one", cases / name / "two")
    checkpoint = list_checkpoints(cases / name / "two")[-1]
    assert checkpoint.state()["parallel"] == {"kind": "fsdp", "world_size": 2}


def without_the_last(run: Path, copy: Path) -> Path:
    """A copy of a run that was stopped after its first checkpoint."""
    shutil.copytree(run, copy)
    (copy / "complete.json").unlink()
    shutil.rmtree(copy / "model")
    shutil.rmtree(list_checkpoints(copy)[-1].path)
    return copy


@pytest.mark.slow
def test_a_run_resumes_with_any_number_of_processes_and_any_strategy(data_dir: Path, tmp_path: Path) -> None:
    changes = {**ACCUMULATED, "save_steps": 2}
    train(resolve(settings(data_dir, tmp_path / "one", **changes)), quiet=True)
    train_together(2, [settings(data_dir, tmp_path / "two", parallel="fsdp", **changes)], tmp_path)
    copies = {name: without_the_last(tmp_path / "two", tmp_path / name) for name in ("by one", "by four", "ddp")}
    plain = without_the_last(tmp_path / "one", tmp_path / "from one")
    same = without_the_last(tmp_path / "two", tmp_path / "same")
    train(resolve(settings(data_dir, copies["by one"], **changes)), quiet=True)
    train_together(4, [settings(data_dir, copies["by four"], parallel="fsdp", **changes)], tmp_path)
    again = [(copies["ddp"], "ddp"), (plain, "fsdp"), (same, "fsdp")]
    train_together(2, [settings(data_dir, path, parallel=kind, **changes) for path, kind in again], tmp_path)
    for path in (*copies.values(), plain):
        assert_same(tmp_path / "one", path)
    assert_same(tmp_path / "two", same, tolerance=0)


@pytest.mark.slow
def test_an_adapter_is_in_its_checkpoint_as_from_one_process(data_dir: Path, tmp_path: Path) -> None:
    changes = {**ACCUMULATED, "save_steps": 2, "use_lora": True, "lora_rank": 4}
    train(resolve(settings(data_dir, tmp_path / "one", **changes)), quiet=True)
    mixed = without_the_last(tmp_path / "one", tmp_path / "mixed")
    runs = [settings(data_dir, path, parallel="fsdp", **changes) for path in (tmp_path / "two", mixed)]
    train_together(2, runs, tmp_path)
    back = without_the_last(tmp_path / "two", tmp_path / "back")
    train(resolve(settings(data_dir, back, **changes)), quiet=True)
    for path in (mixed, back):
        assert_same(tmp_path / "one", path)
    files = [{path.name for path in list_checkpoints(run)[-1].path.iterdir()} for run in (tmp_path / "one", mixed)]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, of which none is killed."""
    work = tmp_path_factory.mktemp("whole")
    train_together(2, [settings(data_dir, work / "whole", **KILLED)], work)
    return work / "whole"


KILLED = {**ACCUMULATED, "save_steps": 2, "parallel": "fsdp"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "call", "number"), [(1, "fsync", 2), (0, "rename", 2)], ids=["writing its part", "putting it in place"]
)
def test_killed_while_saving(data_dir: Path, whole: Path, tmp_path: Path, rank: int, call: str, number: int) -> None:
    """One process dies in the second checkpoint; the other ends by itself and says so; the run ends bit-equal."""
    options = arguments(settings(data_dir, tmp_path / "out", **KILLED))
    ranks = start_ranks(2, HERE / "killed_rank.py", str(rank), call, str(number), "run", *options, "--skip_validation")
    results = finish(ranks, timeout=100)
    code, _, errors = results[1 - rank]
    assert results[rank][0] == -9
    assert code == 3, errors
    assert errors.count("error: ") == 1, errors
    assert f"The same command resumes from {tmp_path / 'out' / 'checkpoint-000002'}." in errors
    assert [each.step for each in list_checkpoints(tmp_path / "out")] == [2]
    again = shared(data_dir, tmp_path / "out", **KILLED)
    assert again.returncode == 0, again.stderr
    assert "resumes from checkpoint-000002" in again.stderr
    assert_same(whole, tmp_path / "out", tolerance=0)
    lines = [without_times(read_lines(path / "metrics.jsonl")) for path in (whole, tmp_path / "out")]
    assert lines[0] == lines[1]


def model_directory(family: str, folder: Path) -> Path:
    """A tiny model's directory."""
    get_family(family).tiny_model(0).save_pretrained(folder)
    get_family(family).tiny_processor().save_pretrained(folder)
    return folder


def rows_settings(family: str, data_dir: Path, output_dir: Path, base: Path, **changes: Any) -> dict[str, Any]:
    """Two steps of a model directory."""
    common = {**ACCUMULATED, "gradient_checkpointing": True, "max_steps": 2, "model_name_or_path": str(base)}
    made = settings(data_dir, output_dir, **{**common, **changes})
    return made if family == "phi3v" else {name: value for name, value in made.items() if name != "num_crops"}


def assert_same_files(one: Path, two: Path) -> None:
    """Losses and weights, and what else is in the model's directory."""
    assert_same(one, two)
    first, second = ({path.name for path in (run / "model").iterdir()} for run in (one, two))
    assert first == second
    for name in first & {"config.json", "generation_config.json", "adapter_config.json"}:
        assert (two / "model" / name).read_bytes() == (one / "model" / name).read_bytes(), name


@pytest.mark.slow
def test_processes_read_their_rows_of_a_model_directory(data_dir: Path, tmp_path: Path) -> None:
    """No process makes the whole model; losses and weights are those of one process, which does."""
    base = model_directory("phi3v", tmp_path / "base")
    one, two = (rows_settings("phi3v", data_dir, tmp_path / run, base) for run in ("one", "two"))
    train(resolve(one), quiet=True)
    double = command("run", *arguments({**two, "parallel": "fsdp"}), "--skip_validation", "--num_processes", "2")
    assert double.returncode == 0, double.stderr
    assert "each process reads its rows of the weights only: about 0.00 GB" in double.stderr
    assert_same_files(tmp_path / "one", tmp_path / "two")


LORA = {"use_lora": True, "lora_rank": 4}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3v lora": ("phi3v", LORA),
    "phi3v frozen vision": ("phi3v", {"freeze_vision_model": True}),
    "gemma3 full": ("gemma3", {}),
    "qwen2_5_vl lora": ("qwen2_5_vl", LORA),
}
"""gemma3's head is its embedding, and its files, as those of qwen2_5_vl, have other names than the model."""


@pytest.fixture(scope="module")
def row_runs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, and by two, which stay together for all of them."""
    work = tmp_path_factory.mktemp("rows")
    two = []
    for name, (family, changes) in ROWS.items():
        base = work / family if (work / family).is_dir() else model_directory(family, work / family)
        train(resolve(rows_settings(family, data_dir, work / name / "one", base, **changes)), quiet=True)
        two.append(rows_settings(family, data_dir, work / name / "two", base, parallel="fsdp", **changes))
    train_together(2, two, work / "together")
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_adapters_bases_and_other_families_train_as_whole_models_do(row_runs: Path, name: str) -> None:
    family, changes = ROWS[name]
    assert find_rows(locate(str(row_runs / family)), MethodConfig(**changes)).directory == row_runs / family
    assert_same_files(row_runs / name / "one", row_runs / name / "two")


VERIFIED = [name for name in family_names() if name != "other"]


@pytest.mark.parametrize("family", VERIFIED)
def test_keys_in_the_files_are_those_of_the_models_tensors(family: str, tmp_path: Path) -> None:
    """Each tensor that transformers loads is, bit by bit, the one under the key that is found for it."""
    folder = model_directory(family, tmp_path)
    source = find_rows(locate(str(folder)), MethodConfig())
    assert (source.directory, source.reason) == (folder, "")
    stored = dict(stored_tensors(folder))
    loaded = own_state(get_family(family).load_model(folder, dtype=torch.float32, attn_implementation="sdpa"))
    assert loaded.keys() == source.keys.keys()
    for name, tensor in loaded.items():
        assert tensor.equal(stored[source.keys[name]].view(tensor.shape)), name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--use_lora", "--use_dora"), "--use_dora computes adapters from whole weights"),
        (("--use_lora", "--lora_init", "pissa"), "--lora_init pissa computes adapters from whole weights"),
        ((), "the files have no tensor for 'model.norm.weight'"),
    ],
)
def test_the_plan_says_why_each_process_loads_the_whole_model(
    options: tuple[str, ...],
    reason: str,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = model_directory("phi3v", tmp_path / "base")
    if not options:
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    common = ("--model_name_or_path", folder, "--parallel", "fsdp", "--num_processes", "2", "--device", "cpu")
    code, _, errors = make_cli(capsys, monkeypatch)("plan", "--data_dir", data_dir, *common, *options, main=main)
    assert code == 0, errors
    assert f"each process loads the whole model into the machine's memory first ({reason}): about" in errors


def test_rows_are_found_whoever_wrote_them(tmp_path: Path) -> None:
    whole = torch.arange(21).view(7, 3).float()
    for rank, (start, stop) in enumerate([(0, 3), (3, 6), (6, 7)]):
        parts = [Part("model/w", whole[start:stop], start, 7)]
        if rank == 0:
            parts.append(Part("step/w", torch.tensor(5.0), 0, 0))
        write_shards(tmp_path, rank, 3, parts)
    shards = Shards(tmp_path)
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(shards.rows("model/w", start, stop), whole[start:stop])
    assert shards.rows("step/w") == 5
    assert (shards.names(), shards.names("step"), shards.total("model/w")) == (["w"], ["w"], 7)
    next((tmp_path / "shards").glob("rank-00001*")).unlink()
    with pytest.raises(UserError, match="4 of 7 rows of model/w"):
        Shards(tmp_path)
