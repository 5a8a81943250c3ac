"""The scripts for rented machines: Slurm's is run with stand-ins for its commands, Azure's job is read as the service
reads it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from colour_sets import colour_directory
from run_dirs import arguments, command, read_lines, settings_for

from phi3v_data.cli.base import run
from phi3v_train.cli.app import COMMANDS, HELP, make_group

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "examples" / "slurm.sh"
AZURE = ROOT / "examples" / "azureml" / "job.yaml"

SRUN = """#!/bin/bash
# Every machine of the job, here as processes of this one.
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & jobs+=($!); done
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
exit ${failed:-0}
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


def stand_in(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


def submit(tmp_path: Path, settings: dict[str, Any], *more: str, python: str) -> "subprocess.CompletedProcess[str]":
    """Run the Slurm script as on two machines with one GPU each."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    stand_in(bin_dir, "srun", SRUN)
    stand_in(
        bin_dir, "scontrol", '#!/bin/bash\n[[ "$*" == "show hostnames node[1-2]" ]] && printf "localhost\\nb\\n"\n'
    )
    stand_in(bin_dir, "python", python)
    return subprocess.run(
        ["bash", str(SLURM), *arguments(settings), "--skip_validation", *more],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "1",
        },
    )


def test_slurm_passes_our_options_on(data_dir: Path, tmp_path: Path) -> None:
    """The command of each machine is shown, and started once, for the plan."""
    python = (
        '#!/bin/bash\necho "python $*" >&2\n[[ $SLURM_NODEID == 0 ]] || exit 0\n'
        f'exec {shlex.quote(sys.executable)} "$@" --dry_run\n'
    )
    result = submit(
        tmp_path,
        settings_for(data_dir, tmp_path / "with space", recipe="docvqa-lora-bf16", dtype="fp32"),
        python=python,
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("python ")]
    port = 20000 + os.getpid() % 20000
    for node in (0, 1):
        start = (
            f"python -m phi3v_train run --nnodes 2 --node_rank {node} --num_processes 1 --master_addr localhost "
            f"--master_port {port} --data_dir "
        )
        assert sum(line.startswith(start) for line in lines) == 1
    assert f"run      {tmp_path / 'with space'}: begins" in result.stderr


def test_slurm_warns_in_time_for_a_checkpoint() -> None:
    """SIGTERM goes to the processes of the job steps (no `B:`), well before the limit."""
    (warning,) = re.findall(r"^#SBATCH --signal=(\S+)$", SLURM.read_text(encoding="utf-8"), re.MULTILINE)
    assert warning == "TERM@600"


@pytest.mark.slow
def test_slurm_trains_on_two_machines_as_one_process_does(data_dir: Path, tmp_path: Path) -> None:
    python = f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n'
    changes = {"learning_rate": 1e-4, "max_steps": 3}
    result = submit(tmp_path, settings_for(data_dir, tmp_path / "two", **changes), python=python)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("complete after 3 steps") == 1
    alone = command("run", *arguments(settings_for(data_dir, tmp_path / "one", **changes)), "--skip_validation")
    assert alone.returncode == 0, alone.stderr
    pairs = zip(
        read_lines(tmp_path / "one" / "metrics.jsonl"), read_lines(tmp_path / "two" / "metrics.jsonl"), strict=True
    )
    for one, two in pairs:
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6)


FIELDS: dict[str, set[str]] = {
    "": {
        "$schema", "type", "name", "display_name", "experiment_name", "description", "tags", "command", "code",
        "environment", "environment_variables", "distribution", "compute", "resources", "limits", "inputs", "outputs",
        "identity", "services", "queue_settings",
    },
    "distribution": {"type", "process_count_per_instance"},
    "resources": {"instance_count", "instance_type", "properties", "docker_args", "shm_size", "locations"},
    "limits": {"timeout"},
    "environment": {"image", "conda_file", "build", "tags"},
}  # fmt: skip
"""Keys of a command job and of its parts, from the reference of Azure's command line."""


def test_azure_job_has_the_fields_of_a_command_job() -> None:
    job = yaml.safe_load(AZURE.read_text(encoding="utf-8"))
    for part, known in FIELDS.items():
        assert set(job[part] if part else job) <= known, part
    assert job["type"] == "command"
    assert job["distribution"]["type"] == "pytorch"
    assert isinstance(job["distribution"]["process_count_per_instance"], int)
    assert isinstance(job["resources"]["instance_count"], int)
    assert re.fullmatch(r"\d+[bkmg]", job["resources"]["shm_size"])
    assert isinstance(job["limits"]["timeout"], int)
    for each in job["inputs"].values():
        assert set(each) <= {"type", "path", "mode"}
        assert each["type"] == "uri_folder"
        assert each["mode"] in ("ro_mount", "download")
    for each in job["outputs"].values():
        assert each["mode"] in ("rw_mount", "upload")
    assert all(isinstance(value, str) for value in job["environment_variables"].values())
    environment = yaml.safe_load((AZURE.parent / job["environment"]["conda_file"]).read_text(encoding="utf-8"))
    assert environment["dependencies"][-1]["pip"][0].startswith("phi3v[")


def test_azure_command_is_a_command_of_phi3v(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = yaml.safe_load(AZURE.read_text(encoding="utf-8"))
    values = {"inputs.data": data_dir, "inputs.model": "tiny", "outputs.run": tmp_path / "run"}
    text = re.sub(r"\$\{\{\s*([\w.]+)\s*\}\}", lambda match: str(values[match[1]]), job["command"])
    python, minus_m, module, *options = shlex.split(text)
    assert (python, minus_m, module) == ("python", "-m", "phi3v_train")
    strategy = options[options.index("--parallel") + 1]
    processes = job["resources"]["instance_count"] * job["distribution"]["process_count_per_instance"]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes}.items():
        monkeypatch.setenv(name, str(value))
    small = ["--dry_run", "--device", "cpu", "--dtype", "fp32", "--num_crops", "1"]
    with pytest.raises(SystemExit) as end:
        run(make_group("phi3v-train", HELP, COMMANDS), [*options, *small])
    said = capsys.readouterr().err
    assert end.value.code == 0, said
    assert f"1 x 4 accumulated x {processes} processes" in said
    assert f"{strategy} (asked for); {processes} processes" in said
