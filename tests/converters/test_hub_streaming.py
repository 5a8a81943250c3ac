"""Hub ids: rows are read where they are, by ranges; the output is that of a snapshot on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from converter_sources import cauldron, cauldron_row, run, write_parquet
from fake_hub import FakeHub, serve

pytest.importorskip("huggingface_hub")
COMMAND = (sys.executable, "-c", "from phi3v_data.cli.app import main; main()")


def convert(hub_url: str, cache: Path, *args: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """The command in a process whose Hub is ours."""
    return subprocess.run(
        [*COMMAND, "convert", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=hub_environment(hub_url, cache),
        cwd=cwd,
    )


def hub_environment(hub_url: str, cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }


def test_a_streamed_set_equals_its_snapshot(tmp_path: Path) -> None:
    snapshot = cauldron(tmp_path / "s")
    with serve(FakeHub("me/little_cauldron", snapshot)) as hub:
        done = convert(
            hub.url, tmp_path / "cache", "cauldron", "--source", "me/little_cauldron", "--config", "nlvr2",
            "--texts", "each", "--group_by", "images", "--out_dir", tmp_path / "o", "--workers", 2,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = {"config": "nlvr2", "texts": "each", "group_by": "images"}
    run("cauldron", snapshot, tmp_path / "local", options=options)
    for path in (tmp_path / "local").rglob("*.j*"):
        if ".phi3v" not in path.parts:
            assert (tmp_path / "o" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()
    assert not any("docvqa" in name for name in hub.sent), "another configuration was read"
    assert not list((tmp_path / "cache").rglob("*.parquet")), "nothing is kept on disk"


def test_only_what_is_needed_is_fetched(tmp_path: Path) -> None:
    table = [cauldron_row([n, n + 500], 1, "png") for n in range(300)]
    file = write_parquet(tmp_path / "s" / "train-00000-of-00001.parquet", table, row_group=10)
    with serve(FakeHub("me/large", tmp_path / "s")) as hub:
        done = convert(
            hub.url, tmp_path / "cache", "cauldron", "--source", "me/large", "--limit", 5,
            "--out_dir", tmp_path / "o", "--workers", 0,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "5 samples" in done.stdout
    assert hub.sent["train-00000-of-00001.parquet"] < file.stat().st_size / 2


def test_an_id_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with serve(FakeHub("me/there", tmp_path)) as hub:
        done = convert(hub.url, tmp_path / "c", "cauldron", "--source", "me/gone", "--out_dir", tmp_path / "o")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "me/gone" in done.stderr


@pytest.mark.parametrize("name", ["docvqa", "hateful_memes", "nlvr2", "cauldron"])
def test_without_a_network_it_is_one_sentence(tmp_path: Path, name: str) -> None:
    done = convert("http://127.0.0.1:9", tmp_path / "c", name, "--out_dir", tmp_path / "o")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot reach the Hub" in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_folder_with_the_name_of_the_owner_is_in_the_way_of_neither_the_default_nor_a_resume(tmp_path: Path) -> None:
    for folder in ("nielsr", "me"):
        (tmp_path / folder).mkdir()
    for source, out in (("nielsr/docvqa_1200_examples", "o"), ("me/there", "me/out")):
        words = ("docvqa", "--source", source, "--out_dir", out)
        done = convert("http://127.0.0.1:9", tmp_path / "c", *words, cwd=tmp_path)
        assert "cannot reach the Hub" in done.stderr
    done = convert(
        "http://127.0.0.1:9", tmp_path / "c", "docvqa", "--source", "me/there", "--out_dir", "o", cwd=tmp_path
    )
    assert "'me/there': no such file or folder in me; if a dataset on the Hub is meant" in done.stderr


HALF = """
import sys, phi3v_data
def stop(stage, done, total):
    if stage == "convert" and done >= 10:
        raise KeyboardInterrupt
phi3v_data.convert("cauldron", sys.argv[1], sys.argv[2], workers=0, progress=stop)
"""


def test_an_interrupted_run_is_resumed_from_another_commit_only_if_its_rows_are_the_same(tmp_path: Path) -> None:
    table = [cauldron_row([n], 1, "png") for n in range(20)]
    file = write_parquet(tmp_path / "s" / "train-00000-of-00001.parquet", table, row_group=5)
    with serve(FakeHub("me/set", tmp_path / "s")) as hub:
        environment = hub_environment(hub.url, tmp_path / "cache")
        args = [sys.executable, "-c", HALF, "me/set", str(tmp_path / "o")]
        assert "KeyboardInterrupt" in subprocess.run(args, capture_output=True, text=True, env=environment).stderr
    shutil.copytree(tmp_path / "o", tmp_path / "same")
    arguments = ("cauldron", "--source", "me/set", "--workers", 0, "--out_dir")
    with serve(FakeHub("me/set", tmp_path / "s", commit="d" * 40)) as hub:
        done = convert(hub.url, tmp_path / "cache", *arguments, tmp_path / "same")
        assert done.returncode == 0, done.stderr
        assert "10 samples" in done.stderr
    table[3]["texts"][0]["assistant"] = "Answer 1."
    write_parquet(file, table, row_group=5)
    with serve(FakeHub("me/set", tmp_path / "s", commit="e" * 40)) as hub:
        done = convert(hub.url, tmp_path / "cache", *arguments, tmp_path / "o")
    assert done.returncode == 2
    assert "has changed since" in done.stderr
    assert "'train-00000-of-00001.parquet', group 0:3 of the source" in done.stderr
    assert "(item 'train[3]')" in done.stderr
