"""No file of a source is passed over in silence, and no path of this machine gets into what is written."""

from pathlib import Path
from typing import Any

import pytest
from converter_sources import cauldron, docvqa_official, encoded, memes_official, nlvr2_official, put, run

import phi3v_data
from phi3v_data.cli.app import COMMANDS
from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.draft import Draft, converter
from phi3v_data.sources.source import Source


def test_every_converter_says_which_files_it_left_out(tmp_path: Path) -> None:
    for name, build in (("docvqa", docvqa_official), ("hateful_memes", memes_official), ("nlvr2", nlvr2_official)):
        source = build(tmp_path / name)
        put(source / "extra" / "unused.png", encoded(99))
        put(source / "words.txt", "x")
        result = run(name, source, tmp_path / f"{name}-o", unlabelled=True)
        [said] = result.warnings
        assert "1 .txt" in said
        assert "'extra/unused.png'" in said
        assert "'words.txt'" in said or said.endswith(" more)")
    source = cauldron(tmp_path / "cauldron")
    [said] = run("cauldron", source, tmp_path / "c", options={"config": "docvqa"}).warnings
    assert said.startswith("left out 1 file of the source, not used by any sample: 1 .parquet ('nlvr2/train-")


def test_a_table_says_which_files_it_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "unused.png"):
        put(tmp_path / "s" / "p" / name, encoded(1))
    put(tmp_path / "s" / "rows.csv", "image,question,answer\np/a.png,Why?,So\n")
    put(tmp_path / "s" / "other.csv", "x\n")
    result = run("table", tmp_path / "s", tmp_path / "o", options={"table": "rows.csv"})
    assert result.notes == ("columns: images from 'image', question from 'question', answer from 'answer'",)
    assert result.warnings == (
        "left out 2 files of the source, not used by any sample: 1 .csv, 1 .png ('other.csv', 'p/unused.png')",
    )


def test_own_converters_leave_nothing_out_in_silence(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.bin"):
        put(tmp_path / "s" / name, encoded(1))

    @converter("one")
    def by_ending(source: Source) -> Any:
        for file in source.files((".png",)):
            yield Draft("Why?", "So", [file.file])

    @converter("two")
    def by_path(source: Source) -> Any:
        source.files((".bin",))
        yield Draft("Why?", "So", [source.root / "b.jpg"])

    result = phi3v_data.convert(by_ending, tmp_path / "s", tmp_path / "o", workers=0)
    assert result.warnings[0].endswith("1 .bin, 1 .jpg ('b.jpg', 'c.bin')")
    result = phi3v_data.convert(by_path, tmp_path / "s", tmp_path / "p", workers=0)
    assert result.warnings[0].endswith("1 .png ('a.png')")


def test_paths_in_what_is_written_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    put(tmp_path / "s" / "rows.csv", "image,question,answer\np/gone.png,Why?,So\np/a.png,Why?,So\np/b.png,Why?,So\n")
    put(tmp_path / "elsewhere" / "p" / "a.png", encoded(1))
    put(tmp_path / "elsewhere" / "p" / "b.png", b"no image")
    options = {"image_dir": str(tmp_path / "elsewhere")}
    run("table", tmp_path / "s", tmp_path / "o", options=options)
    for file in (tmp_path / "o").glob("*.json*"):
        assert str(tmp_path) not in file.read_text()
    monkeypatch.chdir(tmp_path)
    command = "convert table --source s --out_dir o --image_dir elsewhere --seed 5 --workers 0 --quiet"
    with pytest.raises(SystemExit) as stop:
        run_program(make_group("phi3v-data", "", COMMANDS), command.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: o was converted with other settings: seed 0 -> 5; --overwrite replaces it")
