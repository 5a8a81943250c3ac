"""`--device mps` where there is no Mac: choice, refusals and plan, with torch's answers replaced."""

from pathlib import Path

import pytest
import torch
from colour_sets import colour_directory
from in_process import Cli, make_cli
from run_dirs import arguments, settings_for

from phi3v_data.errors import UserError
from phi3v_train.cli.app import main
from phi3v_train.device import is_out_of_memory
from phi3v_train.models.machine import choose_compute, choose_device
from phi3v_train.plan import make_plan
from phi3v_train.settings import resolve


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Apple GPU that is recommended to use 20 GB, under macOS 14."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda major, minor: (major, minor) <= (14, 0))
    monkeypatch.setattr("torch.mps.recommended_max_memory", lambda: 20_000_000_000)


def test_the_plan_of_a_run_on_an_apple_gpu(data_dir: Path, tmp_path: Path, cli: Cli, mac: None) -> None:
    settings = settings_for(data_dir, tmp_path / "out", device="mps")
    code, _, errors = cli("run", *arguments(settings), "--skip_validation", "--dry_run", main=main)
    assert code == 0
    assert (
        "compute  mps (asked for; untested), fp32 (bf16, from macOS 14 on, is untested), attention sdpa (no flash: it "
        "needs a CUDA GPU)\n"
    ) in errors
    assert " of 20.0 GB (weights" in errors
    assert choose_compute(resolve({"device": "mps", "dtype": "bf16"}).config.model).dtype.value == "bf16"


def test_an_apple_gpu_is_only_used_if_it_is_asked_for(mac: None) -> None:
    assert str(choose_device("auto")) == "cpu (no CUDA GPU; --device mps is the Apple GPU, untested)"


def test_macos_13_has_no_bf16(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda major, minor: major < 14)
    with pytest.raises(UserError, match=r"^--dtype bf16: the Apple GPU has it from macOS 14 on; use --dtype fp32$"):
        choose_compute(resolve({"device": "mps", "dtype": "bf16"}).config.model)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ("--use_qlora",),
            "--use_qlora needs kernels of bitsandbytes, which are not used with --device mps: give --use_lora",
        ),
        (
            ("--optim", "adamw_8bit"),
            "--optim adamw_8bit needs kernels of bitsandbytes, which are not used with --device mps: give --optim "
            "adamw",
        ),
        (
            ("--num_processes", "2"),
            "--num_processes 2: --device mps is one GPU for one process; leave --num_processes out",
        ),
        (
            ("--nnodes", "2", "--master_addr", "10.0.0.1"),
            "--nnodes 2: --device mps is one GPU for one process; leave --nnodes out",
        ),
        (("--attn", "flash"), "--attn flash: it needs a CUDA GPU; use --attn sdpa"),
        (
            ("--dtype", "fp16"),
            "--dtype fp16 needs loss scaling, which --device mps does not have here: use fp32 or bf16",
        ),
    ],
)
def test_what_an_apple_gpu_cannot_do_is_refused(
    data_dir: Path, tmp_path: Path, cli: Cli, mac: None, typed: tuple[str, ...], words: str
) -> None:
    settings = settings_for(data_dir, tmp_path / "out", device="mps")
    code, _, errors = cli("run", *arguments(settings), "--skip_validation", *typed, main=main)
    assert (code, errors) == (2, f"error: {words}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("is_built", "reason"),
    [
        (False, "this torch was built without MPS, which its builds for Apple silicon have"),
        (True, "torch sees no Apple GPU"),
    ],
)
def test_without_an_apple_gpu_one_sentence_says_why(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_built: bool, reason: str
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_built", lambda: is_built)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^--device mps: {reason}; use --device cpu$"):
        make_plan(resolve(settings_for(data_dir, tmp_path / "out", device="mps")))


def test_memory_of_an_apple_gpu_that_ran_out_is_recognised() -> None:
    words = "MPS backend out of memory (MPS allocated: 18.10 GB, other allocations: 1.00 MB, max allowed: 18.13 GB)"
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("MPS backend failed"))
    assert is_out_of_memory(torch.OutOfMemoryError())
