"""Settings of engines, what nodes must see, and work that is done twice: all that needs no cluster."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from engine_tasks import process_id
from in_process import Cli, make_cli
from PIL import Image

from phi3v_data.engine.base import FunctionWork, Shared
from phi3v_data.engine.make_engine import check_engine, local_workers, open_engine, parse_resources
from phi3v_data.engine.witness import PACKAGES, difference, needed_folder, package_versions, witnesses
from phi3v_data.errors import UserError
from phi3v_data.exporting import export_set
from phi3v_data.exporting import run as export_run
from phi3v_data.exporting.folder import STATE


def test_resources_of_a_task_are_read() -> None:
    assert parse_resources(None) == {"CPU": 1}
    assert parse_resources("GPU=0.5, memory=1.5GB") == {"CPU": 1, "GPU": 0.5, "memory": 1_500_000_000}
    assert parse_resources("CPU=2,memory=2GiB,fast_disk=3") == {"CPU": 2, "memory": 2 * 1024**3, "fast_disk": 3}


@pytest.mark.parametrize("text", ["", "CPU", "CPU=", "=2", "CPU=-1", "CPU=1.5", "CPU=inf", "memory=4XB", "disk=4GB"])
def test_resources_that_cannot_be_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="expected a list such as CPU=2,memory=4GB"):
        check_engine(engine="ray", ray_resources=text)


def test_a_task_that_needs_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no bound"):
        parse_resources("CPU=0")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Four rows with two images."""
    made = tmp_path / "set"
    (made / "images").mkdir(parents=True)
    for name in "ab":
        Image.new("RGB", (8, 8), "red" if name == "a" else "blue").save(made / f"images/{name}.png")
    rows = [
        {"id": str(n), "source": "s", "conversations": [{"user": f"{n}?", "assistant": "x", "images": [f"{name}.png"]}]}
        for n, name in enumerate("abab")
    ]
    (made / "s_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_options_of_ray_are_refused_without_it_and_for_files(directory: Path, tmp_path: Path, cli: Cli) -> None:
    for command in (
        ["validate", directory],
        ["clean", directory, tmp_path / "out"],
        ["stats", directory],
        ["split", directory, tmp_path / "out", "--split", "train=1"],
        ["export", "llava", directory, "--out", tmp_path / "out"],
        ["convert", "image_folder", "--source", directory, "--out_dir", tmp_path / "out"],
        ["import", "llava", directory / "s_train.jsonl", "--out_dir", tmp_path / "out"],
    ):
        for option in ("ray_address", "ray_resources"):
            code, _, err = cli(*command, f"--{option}", "CPU=1")
            assert (code, err) == (2, f"error: --{option} needs --engine ray\n")
    code, _, err = cli("validate", directory / "s_train.jsonl", "--engine", "ray")
    assert code == 2
    assert err.startswith("error: --engine cannot be used with a file: ")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_one_sentence(directory: Path, cli: Cli) -> None:
    """Ray itself would wait for it for many minutes."""
    pytest.importorskip("ray")
    with socket.socket() as bound:
        bound.bind(("", 0))  # it does not listen
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        code, _, err = cli("validate", directory, "--engine", "ray", "--ray_address", address)
    assert code == 2
    start = f"error: cannot connect to the Ray cluster '{address}' ('nothing answers there: [Errno 111] "
    assert err.splitlines()[-1].startswith(start)


def test_few_tasks_or_one_worker_need_no_process() -> None:
    work, here = FunctionWork(process_id), os.getpid()
    with open_engine(2, few=3) as engine:
        assert {pid for _, pid in engine.run(work, [1, 2])} == {here}
        assert here not in {pid for _, pid in engine.run(work, [1, 2, 3])}
    with open_engine(1, few=3) as engine:
        assert {pid for _, pid in engine.run(work, [1, 2, 3])} == {here}
    with open_engine(1) as engine:
        assert here not in {pid for _, pid in engine.run(work, [1])}


def test_rows_are_read_by_no_more_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    assert [local_workers(each, engine="ray") for each in (None, 2, 64)] == [4, 2, 4]
    assert [local_workers(each) for each in (None, 2, 64)] == [4, 2, 64]


def test_a_machine_with_another_file_or_none_in_its_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    file = tmp_path / "deep/er/a.bin"
    file.write_bytes(b"one")
    monkeypatch.chdir(tmp_path)
    shared = Shared((Path("deep"), tmp_path / "none"), (tmp_path,))
    with witnesses(shared) as wanted:
        needs = (package_versions(), needed_folder(shared))
        assert [each.place for each in wanted] == ["deep", str(tmp_path / "none"), str(tmp_path)]
        assert difference(wanted, *needs) == ""
        file.write_bytes(b"two")
        assert difference(wanted, *needs).startswith("does not see 'deep' as this machine does (it has another file th")
        file.unlink()
        assert "(no such file or directory)" in difference(wanted, *needs)
        assert difference((), ("0", *package_versions()[1:]), "") == (
            f"has phi3v {package_versions()[0]} installed, this machine 0; install the same packages"
        )
        assert difference((), needs[0], str(tmp_path / "gone")).startswith(f"cannot enter '{tmp_path}/gone' (no such")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert len(package_versions()) == len(PACKAGES)


def test_workers_write_a_format_of_a_file_of_the_users_own(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from phi3v_data.formats.llava import LLaVA\nclass Own(LLaVA):\n    name = 'own'\n    suffix = '.jsonl'\n"
    (tmp_path / "own.py").write_text(text)
    monkeypatch.setattr(export_run, "PART_BYTES", 1)
    for workers in (0, 2):
        export_set(f"{tmp_path}/own.py:Own", directory, tmp_path / f"out{workers}", workers=workers)
    written = [(tmp_path / f"out{workers}/train.jsonl").read_text() for workers in (0, 2)]
    assert written[0] == written[1]
    assert written[0].count("\n") == 4


@pytest.mark.parametrize("name", ["llava", "imagefolder", "webdataset"])
def test_a_part_that_is_written_twice_is_counted_once(
    name: str, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the death of a worker, which may also leave an image that it was copying."""
    once = export_set(name, directory, tmp_path / "once")
    write = export_run._Write.run

    def killed(self: Any, part: Any, images: Any) -> tuple[int, int]:
        write(self, part, images)
        for folder in self.stage.rglob("images"):
            (folder / ".phi3v-copy-0").write_bytes(b"half")
        return write(self, part, type(images)(images.dataset))

    monkeypatch.setattr(export_run._Write, "run", killed)
    twice = export_set(name, directory, tmp_path / "twice")
    assert (once.images, twice.images) == ({"webdataset": 4}.get(name, 2),) * 2
    files = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != STATE}
        for out in (tmp_path / "once", tmp_path / "twice")
    ]
    assert files[0] == files[1]
