"""Commands on a Ray cluster of two nodes: the results of the local engine, whatever dies, or one sentence why not."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from engine_tasks import square_or_die
from PIL import Image
from test_convert_kill import kill_when
from toy_converter import COMMAND, TOY, Toy, make_source, plain_source, run_cli, start_cli, tree

import phi3v_data
from phi3v_data.engine.base import FunctionWork, Shared
from phi3v_data.engine.ray import Held, RayEngine, run_task
from phi3v_data.engine.witness import package_versions, witnesses
from phi3v_data.engine.worker import Failure, Success
from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.importing import import_rows
from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.stats import set_stats
from phi3v_data.validate import validate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def on_ray(cluster: Any) -> dict[str, Any]:
    """The arguments that send work there."""
    return {"workers": None, "engine": "ray", "ray_address": cluster.address}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with 900 images: good ones, cut ones, and in test equal and similar ones to train."""
    made: Path = tmp_path_factory.mktemp("sets") / "pages"
    (made / "images").mkdir(parents=True)
    rng = np.random.default_rng(5)
    coarse = rng.integers(40, 200, (900, 6, 6, 3), dtype=np.uint8)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(900):
        split = "test" if number >= 600 else "train"
        like = number - 600 if 600 <= number < 640 else number  # the first 40 of test are those of train again
        image = Image.fromarray(coarse[like]).resize((48, 48), Image.Resampling.BICUBIC)
        kind = "png" if number % 3 == 0 else "jpg"
        path = made / "images" / f"{number:03}.{kind}"
        if 620 <= number < 640:  # similar only
            image = image.point(lambda value: value + 3)
        image.save(path, quality=90)
        if number % 97 == 0:
            path.write_bytes(path.read_bytes()[:-200])
        rows[split].append(
            f'{{"id": "{number}", "source": "s", "conversations": [{{"user": "What is on page {number}?", '
            f'"assistant": "a{number % 7}", "images": ["{path.name}"]}}]}}\n'
        )
    for split, lines in rows.items():
        (made / f"pages_{split}.jsonl").write_text("".join(lines))
    return made


def test_a_validation_gives_the_report_of_the_local_engine_and_its_receipt(
    directory: Path, on_ray: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a path that is relative to the folder of the command."""
    copies = [tmp_path / name / "pages" for name in ("ray", "local")]
    for copy in copies:
        shutil.copytree(directory, copy)
    calls: list[tuple[str, int, int]] = []
    monkeypatch.chdir(tmp_path)
    rayed = validate("ray/pages", progress=lambda *call: calls.append(call), **on_ray)
    local = validate(copies[1], workers=2)
    assert rayed.model_copy(update={"dir": ""}) == local.model_copy(update={"dir": ""})
    assert {"image-unreadable", "leak-image", "leak-near-image"} <= rayed.summary.problems.keys()
    assert [call for call in calls if call[0] == "images"] == [("images", n, 900) for n in (256, 512, 768, 900)]
    calls.clear()
    again = validate("ray/pages", progress=lambda *call: calls.append(call))
    assert (again, calls) == (rayed, [])  # from the receipt


def test_a_part_whose_worker_or_node_dies_is_converted_again(
    cluster: Any, on_ray: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed by SIGKILL, then the whole node, processes and all, on which a part never ends."""
    source = plain_source(tmp_path / "source", {"train": 24, "val": 4})
    killed, reached = tmp_path / "killed", tmp_path / "reached"
    doomed = {f"train/g{n:02}/s{2 * n:03}.txt": f"doomed {reached}\nimage {n}" for n in range(3, 12)}
    make_source(source, {"train/g01/s002.txt": f"once {killed}\nimage 1", **doomed})
    node = cluster.add_node(num_cpus=1, env_vars={"DOOMED": "1"})
    removed = []

    def progress(stage: str, done: int, total: int | None) -> None:
        if reached.exists() and not removed:
            removed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    phi3v_data.convert(Toy, source, tmp_path / "ray", progress=progress, **on_ray)
    assert removed
    assert killed.exists()
    assert capsys.readouterr().out == ""  # Ray says there that a worker died
    phi3v_data.convert(Toy, source, tmp_path / "local", workers=1)
    assert tree(tmp_path / "ray", hidden=True) == tree(tmp_path / "local", hidden=True)


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[None]:
    """This process is connected, so that all commands share their workers, as in a program that uses Ray itself."""
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def cleaned(directory: Path) -> Path:
    """A valid copy of it, made by the local engine."""
    clean_set(directory, directory.parent / "clean", workers=2)
    return directory.parent / "clean"


@pytest.mark.usefixtures("connected")
def test_clean_and_stats_give_what_the_local_engine_gives(
    directory: Path, cleaned: Path, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    clean_set(directory, tmp_path / "clean", **on_ray)
    assert tree(tmp_path / "clean") == tree(cleaned)
    found = [{**set_stats(directory, **options), "dir": ""} for options in (on_ray, {"workers": 2})]
    assert found[0] == found[1]
    assert found[0]["duplicates"]["near"]["groups"] > 0


@pytest.mark.usefixtures("connected")
def test_an_export_has_the_bytes_of_the_local_engine(cleaned: Path, on_ray: dict[str, Any], tmp_path: Path) -> None:
    request = ExportRequest(shard_bytes=100_000)
    for name in ("webdataset", "llava"):
        rayed, local = (
            export_set(name, cleaned, tmp_path / f"{name}-{out}", request, **options)
            for out, options in (("ray", on_ray), ("local", {"workers": 2}))
        )
        assert tree(tmp_path / f"{name}-ray", hidden=True) == tree(tmp_path / f"{name}-local", hidden=True)
        # of 900, ten are cut and 19 of test are those of train: the first of these 20 is cut there
        assert rayed.images == local.images == 871


@pytest.mark.usefixtures("connected")
def test_an_import_has_the_bytes_of_the_local_engine(cleaned: Path, on_ray: dict[str, Any], tmp_path: Path) -> None:
    export_set("llava", cleaned, tmp_path / "llava", ExportRequest())
    imports = (("ray", on_ray), ("local", {"workers": 2}))
    rayed, local = (import_rows("llava", tmp_path / "llava", tmp_path / out, **options) for out, options in imports)
    assert tree(tmp_path / "ray", hidden=True) == tree(tmp_path / "local", hidden=True)
    assert rayed.samples == local.samples > 0


def test_tasks_are_bounded_and_their_results_in_order(cluster: Any) -> None:
    asked = []

    def tasks() -> Iterator[int]:
        for number in range(10, 30):
            asked.append(number)
            yield number

    engine = RayEngine(2, cluster.address)
    try:
        results = engine.run(FunctionWork(square_or_die), tasks())
        assert next(results) == (10, 100)
        assert len(asked) <= 5
        assert list(results) == [(number, number * number) for number in range(11, 30)]
        with pytest.raises(ValueError, match="five is too much") as error:
            list(engine.run(FunctionWork(square_or_die), [4, 5]))
        assert any("engine_tasks.py" in note for note in error.value.__notes__)
        deaths = engine.run(FunctionWork(square_or_die), [2, 3], on_death=lambda death: -death.task)
        assert list(deaths) == [(2, 4), (3, -3)]
    finally:
        engine.close()


@pytest.mark.usefixtures("connected")
def test_a_killed_driver_is_resumed(cluster: Any, on_ray: dict[str, Any], tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 60})
    phi3v_data.convert(Toy, source, tmp_path / "local", workers=1)
    args = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "ray", "--engine", "ray"]
    process = start_cli([*args, "--ray_address", cluster.address], stdout=subprocess.DEVNULL)
    assert kill_when(process, tmp_path / "ray", 60, group=False)
    result = phi3v_data.convert(Toy, source, tmp_path / "ray", **on_ray)
    assert 0 < result.resumed < 60
    assert tree(tmp_path / "ray", hidden=True) == tree(tmp_path / "local", hidden=True)


@pytest.mark.usefixtures("connected")
def test_shards_have_the_bytes_of_the_local_engine(on_ray: dict[str, Any], tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 30, "val": 6})
    for out, options in (("ray", on_ray), ("local", {"workers": 1})):
        phi3v_data.convert(Toy, source, tmp_path / out, store="shards", **options)
    assert tree(tmp_path / "ray", hidden=True) == tree(tmp_path / "local", hidden=True)
    assert [name for name in tree(tmp_path / "local", hidden=True) if name.endswith(".tar")]


@pytest.mark.usefixtures("connected")
def test_a_killed_driver_of_a_validation_or_export_leaves_nothing_in_the_way(
    directory: Path, cleaned: Path, cluster: Any, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "pages"
    shutil.copytree(directory, copy)
    where = ["--engine", "ray", "--ray_address", cluster.address]
    export = start_cli(["export", "llava", cleaned, "--out", tmp_path / "out", *where], stdout=subprocess.DEVNULL)
    assert kill_when(export, tmp_path, len(tree(tmp_path, hidden=True)) + 3, group=False)
    check = start_cli(["validate", copy, *where], stdout=subprocess.DEVNULL)
    assert kill_when(check, copy, len(tree(copy, hidden=True)) + 1, group=False)
    assert validate(copy, **on_ray).summary == validate(directory, use_receipt=False).summary
    export_set("llava", cleaned, tmp_path / "out", **on_ray)
    export_set("llava", cleaned, tmp_path / "local")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "local", hidden=True)


def test_tasks_that_rays_memory_monitor_kills_end_the_command(directory: Path, tmp_path: Path) -> None:
    """By Ray's own default they are run again without end, and without a word."""
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    words = ("export", "webdataset", directory, "--out", tmp_path / "out", "--engine", "ray", "--workers", 1)
    done = run_cli(*words, env={**os.environ, **limits})
    assert done.returncode == 2
    assert "a worker of Ray died (OutOfMemoryError); run the same command again" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("victim", ["head", "node", "command"])
def test_the_end_of_ray_or_of_the_command_is_at_most_one_sentence(victim: str, tmp_path: Path) -> None:
    """Of Ray's head it would be exit code 1, which means that the data has problems; by SIGTERM 15 and a stack."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    source = make_source(tmp_path / "source", {"train/a/1.txt": f"wait {pipe}"})
    words = ["convert", "--converter", TOY, "--source", source, "--out_dir", tmp_path / "out", "--engine", "ray"]
    env = {**os.environ, "RAY_gcs_rpc_server_reconnect_timeout_s": "4"}
    process = start_cli([*words, "--workers", 1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    writer = os.open(pipe, os.O_WRONLY)  # waits for the task
    children = {each.name(): each for each in psutil.Process(process.pid).children(recursive=True)}
    servers = [children["raylet"], children["gcs_server"]]
    if victim == "command":
        process.terminate()
    else:
        servers[victim == "head"].kill()
    out, err = (each.decode() for each in process.communicate())
    os.close(writer)
    assert out == ""
    said = [line for line in err.splitlines() if "cc:" not in line and not line.startswith("convert: ")]
    if victim == "command":
        assert (process.returncode, said, err.count("SIGTERM")) == (143, [], 0), out + err
    else:
        assert (process.returncode, len(said)) == (2, 1), err
        expected = {
            "head": r"error: the head of the Ray cluster, '\S+:\d+', has not answered for 1 s; what was finished is "
            "kept: run the same command to resume",
            "node": "error: the Ray node of this machine has not answered for 5 s; what was finished is kept: run the "
            "same command to resume",
        }
        assert re.fullmatch(expected[victim], said[0]), said
    psutil.wait_procs(servers, timeout=30)
    assert [each for each in servers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def test_ctrl_c_while_ray_starts_ends_with_130(directory: Path, tmp_path: Path) -> None:
    """Ray itself may crash then. The signal comes when its last server has been started, and Ray connects to it."""
    words = ["export", "webdataset", directory, "--out", tmp_path / "out", "--engine", "ray", "--workers", 1]
    command = start_cli(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not any("raylet" in each.name() for each in psutil.Process(command.pid).children(recursive=True)):
        assert command.poll() is None
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate()[1].decode()
    assert (command.returncode, "Stopped. Nothing was written to --out" in said) == (130, True), said
    assert os.listdir(tmp_path) == []


BLIND_NODE = (
    "mount -t tmpfs none {hidden} && exec {python} -m ray.scripts.scripts start --address={address} --num-cpus=1 "
    "--resources='{{\"blind\": 1}}' --disable-usage-stats --block"
)


@pytest.mark.usefixtures("connected")
def test_a_node_that_does_not_see_the_files_is_one_sentence(
    directory: Path, cluster: Any, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    """A node in a mount namespace of its own, in which another file system is in the place of DIR's."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mounts of our own here")
    source = plain_source(tmp_path / "source", {"train": 8})
    script = BLIND_NODE.format(hidden=directory.parent, python=sys.executable, address=cluster.address)
    node = subprocess.Popen(["unshare", "-rm", "sh", "-c", script], start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        cluster.wait_for_nodes(timeout=60)
        import ray

        while not ray.cluster_resources().get("blind"):
            assert node.poll() is None
        with pytest.raises(phi3v_data.UserError) as error:
            validate(directory, fresh=True, **on_ray)
        words = str(error.value)
        assert words.startswith("the Ray node '")
        assert f"does not see '{directory}/images/" in words
        assert "(no such file or directory); mount the same file system at the same path on all nodes" in words
        assert len(words) <= 300
        with pytest.raises(phi3v_data.UserError, match=r"does not see .*mount the same file system"):
            phi3v_data.convert(Toy, source, directory.parent / "out", **on_ray)
        result = phi3v_data.convert(Toy, source, tmp_path / "out", **on_ray)  # elsewhere the node is of use
        assert result.samples == 8
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def test_a_worker_process_that_does_not_see_the_files_refuses_its_task(tmp_path: Path) -> None:
    """As that of a node that joins when the others have been asked."""
    pytest.importorskip("ray")
    file = tmp_path / "a"
    file.write_bytes(b"a")
    with witnesses(Shared((file,))) as wanted:
        needs = (wanted, package_versions(), "")
        assert run_task(Held(FunctionWork(square_or_die), needs), 4) == Success(16)
        file.unlink()
        (other,) = (replace(each, state="0 0 0") for each in wanted)  # the answer about `wanted` is remembered
        refused = run_task(Held(FunctionWork(square_or_die), ((other,), *needs[1:])), 4)
    assert isinstance(refused, Failure)
    assert re.match(r"the Ray node '[0-9.]+' does not see '.*/a' as this machine does", str(refused.error))


@pytest.mark.usefixtures("connected")
def test_resources_that_no_node_has_are_one_sentence(directory: Path, on_ray: dict[str, Any]) -> None:
    with pytest.raises(phi3v_data.UserError, match=r"nodes of the Ray cluster has 'CPU=1, fast_disk=2', which a task"):
        validate(directory, fresh=True, ray_resources="fast_disk=2", **on_ray)


def test_the_job_of_the_example_runs_as_written(directory: Path, cluster: Any, tmp_path: Path) -> None:
    """Its commands on the cluster of `RAY_ADDRESS`, with the `phi3v-data` of this checkout."""
    source = plain_source(tmp_path / "source", {"train": 8, "val": 4})
    make_source(source, {"train/g00/s900.txt": "reject"})
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/phi3v-data"
    program.write_text("#!/bin/sh\nexec '{}' {} '{}' \"$@\"\n".format(*COMMAND))
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "RAY_ADDRESS": cluster.address}
    args = ["--converter", TOY, "--source", str(source)]
    job = ["bash", str(ROOT / "examples/ray_job.sh"), str(tmp_path / "data"), *args]
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/set/rejects.jsonl").read_text().count("toy-reject") == 1
    phi3v_data.convert(Toy, source, tmp_path / "local", workers=1)
    assert tree(tmp_path / "data/set") == tree(tmp_path / "local")
    shards = [path.name for path in (tmp_path / "data/shards").glob("*.tar")]
    assert shards == ["train-000000.tar"]  # the images of val are those of train: its rows are errors and left out
