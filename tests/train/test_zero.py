"""DeepSpeed's ZeRO between two real processes: the same numbers as one, resumed by any number, never something else."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from colour_sets import colour_directory
from processes import HERE, finish, start
from run_dirs import arguments, command, read_lines, settings_for, without_times
from safetensors.torch import load_file

from phi3v_data.errors import UserError
from phi3v_train.plan import Plan, make_plan
from phi3v_train.run import run as train
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints, open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("deepspeed") is None,
        reason="deepspeed is not installed: pip install -c constraints.txt -e '.[deepspeed]' in a clone of phi3v",
    ),
]

STAGES = ("zero2", "zero3")
LORA = {"use_lora": True, "lora_rank": 4, "lora_dropout": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "accumulated": {"batch_size_per_gpu": 1},
    "packed": {"batch_size_per_gpu": 2, "pack": True},
    "frozen vision": {"batch_size_per_gpu": 1, "freeze_vision_model": True},
    "lora": {"batch_size_per_gpu": 1, "gradient_checkpointing": True, **LORA},
    "qlora": {"batch_size_per_gpu": 1, **LORA, "use_qlora": True},
    "offloaded": {"batch_size_per_gpu": 1},
}
OFFLOADED = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


class Job(NamedTuple):
    """One run; see forked_runs.py."""

    output_dir: Path
    settings: dict[str, Any]
    processes: int = 2
    kill: tuple[int, str, int] | None = None
    before: str = ""


class Done(NamedTuple):
    """Outcome of a run: exit codes by rank, and the output of its processes."""

    codes: list[int]
    out: str
    err: str


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows in fours: the last step is a short one, and some micro-batches have no image."""
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def run_jobs(data_dir: Path, work: Path, jobs: list[Job]) -> list[Done]:
    """Run one after another, each in processes of its own."""
    work.mkdir(parents=True, exist_ok=True)
    described = [
        {
            "name": f"job{number}",
            "arguments": [*arguments(options(data_dir, job)), "--skip_validation"],
            "processes": job.processes,
            "kill": job.kill,
            "before": job.before,
        }
        for number, job in enumerate(jobs)
    ]
    (work / "jobs.json").write_text(json.dumps(described))
    process = start(
        HERE / "forked_runs.py", work / "jobs.json", work, "deepspeed",
        DS_ACCELERATOR="cpu", TORCH_CPP_LOG_LEVEL="ERROR",
    )  # fmt: skip
    ((code, output, errors),) = finish([process], timeout=300)
    assert code == 0, errors
    done = []
    for number, codes in enumerate(json.loads(output.splitlines()[-1])):
        texts = {
            kind: "".join((work / f"job{number}-{rank}.{kind}").read_text() for rank in range(len(codes)))
            for kind in ("out", "err")
        }
        done.append(Done(codes, texts["out"], texts["err"]))
    return done


def options(data_dir: Path, job: Job) -> dict[str, Any]:
    """Options of a short run in a job's folder."""
    return settings_for(data_dir, job.output_dir, **{"learning_rate": 1e-4, "max_steps": 4, **job.settings})


def alone(data_dir: Path, output_dir: Path, changes: dict[str, Any]) -> Path:
    """The same run in one process, here."""
    train(resolve(options(data_dir, Job(output_dir, changes))), quiet=True)
    return output_dir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory or an adapter."""
    return {
        name: value for path in sorted(folder.glob("*model*.safetensors")) for name, value in load_file(path).items()
    }


def assert_same(one: Path, other: Path) -> None:
    """Loss and weights within 1e-6."""
    lines = [[line for line in read_lines(each / "metrics.jsonl") if line["step"]] for each in (one, other)]
    for first, second in zip(*lines, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
        assert first["supervised_tokens"] == second["supervised_tokens"]
        assert first["lr"] == second["lr"]
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-5)
    expected, found = weights(one / "model"), weights(other / "model")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def compared(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Done]]:
    """Every case under both stages: the run in one process, the run in two, and what the two said."""
    work = tmp_path_factory.mktemp("compared")
    names = [(case, strategy) for case in CASES for strategy in STAGES]
    single = {case: alone(data_dir, work / f"{case} single", changes) for case, changes in CASES.items()}
    (work / "offloaded.json").write_text(json.dumps(OFFLOADED))
    more = {"offloaded": {"deepspeed": str(work / "offloaded.json")}}
    jobs = [
        Job(work / f"{case} {strategy}", {**CASES[case], **more.get(case, {}), "parallel": strategy})
        for case, strategy in names
    ]
    done = run_jobs(data_dir, work, jobs)
    return {
        f"{case} {strategy}": (single[case], job.output_dir, each)
        for (case, strategy), job, each in zip(names, jobs, done, strict=True)
    }


@pytest.mark.parametrize("strategy", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(
    compared: dict[str, tuple[Path, Path, Done]], case: str, strategy: str
) -> None:
    one, two, done = compared[f"{case} {strategy}"]
    assert done.codes == [0, 0], done.err
    assert_same(one, two)
    assert done.out.count("complete after 4 steps") == 1
    assert done.err.count(f"ZeRO stage {strategy[-1]}") == 1
    assert "Warning" not in done.err
    written = json.loads((two / "deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == int(strategy[-1])
    assert written["train_batch_size"] == 4
    assert list_checkpoints(two)[-1].state()["parallel"] == {"kind": strategy, "world_size": 2}


def forget_end(output_dir: Path) -> None:
    """As if the run had been stopped after its first checkpoint."""
    (output_dir / "complete.json").unlink()
    for checkpoint in list_checkpoints(output_dir)[1:]:
        shutil.rmtree(checkpoint.path)


def everything(output_dir: Path) -> dict[str, Any]:
    """Losses, weights and moments, as bytes."""
    newest = list_checkpoints(output_dir)[-1].path
    tensors = {
        f"{path.parent.name}/{path.name}/{name}": value.contiguous().view(torch.uint8).numpy().tobytes()
        for folder in (newest, output_dir / "model")
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
    return {"metrics": without_times(read_lines(output_dir / "metrics.jsonl")), "tensors": tensors}


FROM_OTHERS = [("zero2", "one"), ("zero3", "one"), ("zero2", "fsdp"), ("zero3", "fsdp")]
RESUMED = {"batch_size_per_gpu": 1, "save_steps": 2, "save_total_limit": 9}


@pytest.mark.parametrize(("strategy", "method"), [("zero2", {}), ("zero3", {}), ("zero3", LORA)])
def test_resumes_bit_by_bit_and_on_other_numbers_of_processes(
    data_dir: Path, tmp_path: Path, strategy: str, method: dict[str, Any]
) -> None:
    settings = {**RESUMED, **method, "parallel": strategy}
    (whole,) = run_jobs(data_dir, tmp_path, [Job(tmp_path / "whole", settings)])
    assert whole.codes == [0, 0], whole.err
    jobs = [
        Job(tmp_path / "same", settings),
        Job(tmp_path / "one", {**settings, "parallel": "auto"}, processes=1),
        Job(tmp_path / "fsdp", {**settings, "parallel": "fsdp"}),
    ]
    if not method:
        jobs.append(Job(tmp_path / "four", settings, processes=4))
    for job in jobs:
        shutil.copytree(tmp_path / "whole", job.output_dir)
        forget_end(job.output_dir)
    for job, done in zip(jobs, run_jobs(data_dir, tmp_path, jobs), strict=True):
        assert done.codes == [0] * job.processes, done.err
        assert done.err.count("resumes from checkpoint-000002") == 1
        assert_same(tmp_path / "whole", job.output_dir)
    assert everything(tmp_path / "same") == everything(tmp_path / "whole")


def test_resumes_from_checkpoints_of_other_strategies(data_dir: Path, tmp_path: Path) -> None:
    (first,) = run_jobs(data_dir, tmp_path, [Job(tmp_path / "fsdp", {**RESUMED, "parallel": "fsdp"})])
    assert first.codes == [0, 0], first.err
    alone(data_dir, tmp_path / "one", RESUMED)
    jobs = [
        Job(tmp_path / f"{strategy} {source}", {**RESUMED, "parallel": strategy}) for strategy, source in FROM_OTHERS
    ]
    for job, (_, source) in zip(jobs, FROM_OTHERS, strict=True):
        shutil.copytree(tmp_path / source, job.output_dir)
        forget_end(job.output_dir)
    for job, done in zip(jobs, run_jobs(data_dir, tmp_path, jobs), strict=True):
        assert done.codes == [0, 0], done.err
        assert_same(tmp_path / "one", job.output_dir)


KILLS = [
    ("zero2", (1, "fsync", 1)),
    ("zero2", (0, "rename", 2)),
    ("zero3", (1, "fsync", 2)),
    ("zero3", (0, "fsync", 3)),
]
"""A rank, and before which call it is ended: its part of a checkpoint is written and not synced; all is written, but
the folder has not got its name.
"""


def test_killed_while_saving(data_dir: Path, tmp_path: Path) -> None:
    whole = {strategy: Job(tmp_path / strategy, {**RESUMED, "parallel": strategy}) for strategy in STAGES}
    jobs = list(whole.values())
    for number, (strategy, kill) in enumerate(KILLS):
        jobs += [Job(tmp_path / f"out{number}", whole[strategy].settings, kill=stop) for stop in (kill, None)]
    done = run_jobs(data_dir, tmp_path, jobs)
    assert [each.codes for each in done[:2]] == [[0, 0], [0, 0]], done[0].err + done[1].err
    for number, (strategy, (rank, *_)) in enumerate(KILLS):
        stopped, ended = done[2 + 2 * number], done[3 + 2 * number]
        assert stopped.codes[rank] == -9, stopped
        assert ended.codes == [0, 0], ended.err
        assert everything(tmp_path / f"out{number}") == everything(tmp_path / strategy)
        assert not list((tmp_path / f"out{number}").glob(".checkpoint*"))


@pytest.mark.parametrize("strategy", STAGES)
def test_a_checkpoint_that_lacks_a_part_does_not_count(
    compared: dict[str, tuple[Path, Path, Done]], tmp_path: Path, strategy: str
) -> None:
    _, two, _ = compared[f"accumulated {strategy}"]
    copy = tmp_path / "checkpoint-000004"
    shutil.copytree(two / "checkpoint-000004", copy)
    assert open_checkpoint(copy) is not None
    listed = json.loads((copy / "COMPLETE.json").read_text())
    assert listed["files"].keys() == listed["xxh3_128"].keys()
    next(copy.glob("optimizer-00001-*")).unlink()
    assert open_checkpoint(copy) is None


@pytest.mark.parametrize("strategy", STAGES)
@pytest.mark.parametrize("case", ["accumulated", "lora"])
def test_merge_makes_a_model_of_a_checkpoint(
    compared: dict[str, tuple[Path, Path, Done]], tmp_path: Path, case: str, strategy: str
) -> None:
    from phi3v_train.models.locate import locate
    from phi3v_train.training.merging import merge_to

    one, two, _ = compared[f"{case} {strategy}"]
    for name, output_dir in (("one", one), ("two", two)):
        merge_to(locate(str(output_dir / "checkpoint-000004")), tmp_path / name, dtype="fp32")
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


def test_evaluation_sees_the_same_model(data_dir: Path, tmp_path: Path) -> None:
    """Answers before, between and after the steps; training continues from there as if nothing had been asked."""
    changes = {"eval_before": True, "eval_after": True, "eval_steps": 2, "max_new_tokens": 3, "max_steps": 3}
    alone(data_dir, tmp_path / "one", changes)
    done = run_jobs(
        data_dir, tmp_path, [Job(tmp_path / strategy, {**changes, "parallel": strategy}) for strategy in STAGES]
    )
    for strategy, each in zip(STAGES, done, strict=True):
        assert each.codes == [0, 0], each.err
        assert_same(tmp_path / "one", tmp_path / strategy)
        predictions = sorted((tmp_path / "one").rglob("predictions.jsonl"))
        assert len(predictions) == 3
        for path in predictions:
            answers = zip(
                read_lines(path), read_lines(tmp_path / strategy / path.relative_to(tmp_path / "one")), strict=True
            )
            for expected, found in answers:
                assert found == {**expected, "scores": pytest.approx(expected["scores"], abs=1e-6)}


def test_in_16_bits_a_run_resumes_bit_by_bit(data_dir: Path, tmp_path: Path) -> None:
    settings = [{**RESUMED, "dtype": "bf16", "parallel": strategy} for strategy in STAGES]
    done = run_jobs(data_dir, tmp_path, [Job(tmp_path / each["parallel"], each) for each in settings])
    assert [each.codes for each in done] == [[0, 0], [0, 0]], done[0].err + done[1].err
    for strategy in STAGES:
        shutil.copytree(tmp_path / strategy, tmp_path / f"{strategy} again")
        forget_end(tmp_path / f"{strategy} again")
        stored = json.loads((tmp_path / strategy / "deepspeed.json").read_text())
        assert stored["bf16"]["enabled"] is True
    done = run_jobs(data_dir, tmp_path, [Job(tmp_path / f"{each['parallel']} again", each) for each in settings])
    assert [each.codes for each in done] == [[0, 0], [0, 0]], done[0].err + done[1].err
    for strategy in STAGES:
        assert everything(tmp_path / f"{strategy} again") == everything(tmp_path / strategy)


READS_ALL_BITS = """
import torch
from phi3v_train.training.parallel.zero import ZeroEngine
from phi3v_train.training.saving import ADAPTER_WEIGHTS, stored_name, stored_slices
real = ZeroEngine.read
def read(self, folder):
    real(self, folder)
    adapter = (folder / ADAPTER_WEIGHTS).exists()
    stored = dict(stored_slices(folder, ADAPTER_WEIGHTS if adapter else None))
    rounded = 0
    for parameter, name in self.names.items():
        expected = stored[stored_name(name) if adapter else name][:]
        assert expected.dtype == torch.float32
        assert torch.equal(self.full_fp32(parameter).cpu(), expected), name
        rounded += bool((expected.bfloat16().float() != expected).any())
    assert rounded > len(self.names) // 2
    print("all bits read")
ZeroEngine.read = read
"""


@pytest.mark.parametrize("method", [{}, {"use_lora": True, "lora_rank": 4}], ids=["full", "lora"])
def test_in_16_bits_no_weight_from_another_strategy_is_rounded(
    data_dir: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    settings = {**RESUMED, **method, "dtype": "bf16", "learning_rate": 1e-3}
    alone(data_dir, tmp_path / "one", settings)
    jobs = [Job(tmp_path / strategy, {**settings, "parallel": strategy}, before=READS_ALL_BITS) for strategy in STAGES]
    for job in jobs:
        shutil.copytree(tmp_path / "one", job.output_dir)
        forget_end(job.output_dir)
    for done in run_jobs(data_dir, tmp_path, jobs):
        assert done.codes == [0, 0], done.err
        assert done.out.count("all bits read") == 2


def plan_with(data_dir: Path, tmp_path: Path, file: Any, **changes: Any) -> Plan:
    """The plan of a run of two processes with a DeepSpeed configuration."""
    path = tmp_path / "ds.json"
    path.write_text(file if isinstance(file, str) else json.dumps(file))
    settings = options(data_dir, Job(tmp_path / "out", {"parallel": "zero2", "deepspeed": str(path), **changes}))
    return make_plan(resolve(settings), world_size=2)


def test_a_configuration_of_ones_own(data_dir: Path, tmp_path: Path) -> None:
    """`auto` everywhere, as in the files that go round for transformers' Trainer."""
    file = {
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto", "total_num_steps": "auto"}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "allgather_bucket_size": 12345},
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    plan = plan_with(data_dir, tmp_path, file).deepspeed
    assert plan is not None
    assert plan["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 128 * 128, "allgather_bucket_size": 12345}
    assert (plan["train_batch_size"], plan["gradient_clipping"], plan["bf16"]) == (4, 1.0, {"enabled": False})
    assert "optimizer" not in plan
    assert "scheduler" not in plan


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"train_batch_size": 64}, "train_batch_size 64 contradicts --batch_size 4"),
        ({"optimizer": {"params": {"lr": 1.0}}}, "optimizer.params.lr 1.0 contradicts --learning_rate 0.0001"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5 contradicts --max_grad_norm 1.0"),
        ({"fp16": {"enabled": True}}, "fp16.enabled true contradicts --dtype fp16 false"),
        ({"optimizer": {"type": "Lion"}}, "optimizer.type Lion"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler.type OneCycle contradicts --lr_scheduler linear"),
        ({"zero_optimization": {"stage": 3}}, "stage 3 contradicts --parallel zero2"),
        ({"zero_optimization": {"no_such_key": 1}}, "zero_optimization.no_such_key"),
        ({"fp16": {"loss_scale": "much"}}, "fp16.loss_scale: "),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow false cannot be used"),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op "sum" cannot be used'),
        ({"zero_optimization": {"round_robin_gradients": "auto"}}, 'round_robin_gradients: "auto" has no meaning'),
        ("{\n 1}", "ds.json:2: not JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_configuration_that_contradicts_the_run(data_dir: Path, tmp_path: Path, file: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        plan_with(data_dir, tmp_path, file)
    assert "ds.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_contradiction_stops_the_command_before_the_model_is_loaded(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 0.5}')
    changes = {"parallel": "zero2", "deepspeed": str(tmp_path / "ds.json"), "num_processes": 2}
    settings = options(data_dir, Job(tmp_path / "out", changes))
    result = command("run", *arguments(settings), "--skip_validation")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "gradient_clipping 0.5 contradicts --max_grad_norm 1.0" in result.stderr
    assert not (tmp_path / "out").exists()


def test_fp16_on_a_cpu_is_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DeepSpeed has no fp16 on a CPU: use --dtype bf16 or fp32"):
        plan_with(data_dir, tmp_path, {}, dtype="fp16")


def test_a_configuration_without_zero(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is for --parallel zero2 or zero3"):
        plan_with(data_dir, tmp_path, {}, parallel="ddp")


def test_without_the_package(data_dir: Path, tmp_path: Path) -> None:
    """One sentence, before the data are looked at."""
    settings = {**options(data_dir, Job(tmp_path / "out", {})), "parallel": "zero2", "num_processes": 2}
    code = (
        "import sys; sys.modules['deepspeed'] = None; sys.argv[0] = 'phi3v-train';"
        "from phi3v_train.cli.app import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "run", *arguments(settings), "--skip_validation"],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().endswith(
        "need the package deepspeed: pip install -c constraints.txt -e '.[deepspeed]' in a clone of phi3v"
    )
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_without_a_compiler(data_dir: Path, tmp_path: Path) -> None:
    """Nothing is compiled: neither g++ nor ninja is on the PATH, and the run is as good."""
    settings = options(data_dir, Job(tmp_path / "out", {"parallel": "zero2", "num_processes": 2, "max_steps": 1}))
    empty = tmp_path / "empty"
    empty.mkdir()
    result = command(
        "run", *arguments(settings), "--skip_validation", PATH=str(empty), TORCH_EXTENSIONS_DIR=str(tmp_path / "built")
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "built").exists()


OTHER_STAGE = """
import deepspeed
real = deepspeed.initialize
def other(**given):
    given["config"]["zero_optimization"] = {"stage": 5 - given["config"]["zero_optimization"]["stage"]}
    return real(**given)
deepspeed.initialize = other
"""

BAD_GRADIENT = """
import math
import phi3v_train.training.methods as methods
real = methods.apply_method
def poisoned(*args, **kwargs):
    trained = real(*args, **kwargs)
    name, parameter = next(trained.trainable())
    parameter.register_hook(lambda gradient: gradient * math.inf)
    return trained
methods.apply_method = poisoned
"""


def test_never_trains_on_in_a_wrong_state(data_dir: Path, tmp_path: Path) -> None:
    """A DeepSpeed that hands back another stage; a gradient that is not finite in one place of one tensor."""
    jobs = [
        Job(tmp_path / f"{strategy} {number}", {"parallel": strategy}, before=code)
        for strategy in STAGES
        for number, code in enumerate((OTHER_STAGE, BAD_GRADIENT))
    ]
    done = run_jobs(data_dir, tmp_path, jobs)
    held = {"zero2": "DeepSpeedZeroOptimizer_Stage3", "zero3": "DeepSpeedZeroOptimizer"}
    for job, each in zip(jobs, done, strict=True):
        assert (2 if job.before == OTHER_STAGE else 1) in each.codes, each
        assert not list_checkpoints(job.output_dir)
        assert "Traceback" not in each.err
        strategy = job.settings["parallel"]
        words = (
            f"--parallel {strategy}: weights are held by {held[strategy]} instead"
            if job.before == OTHER_STAGE
            else ("step 1: the gradient's norm is inf, so training stopped before the update")
        )
        assert each.err.count(words) == 1, each.err
