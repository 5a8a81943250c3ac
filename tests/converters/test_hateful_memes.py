"""Hateful Memes: official files, mirrors, and no word of a sample where it does not belong."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from converter_sources import (
    MEMES,
    SECRET,
    cauldron,
    embedded,
    findings,
    images,
    json_lines,
    meme,
    memes_official,
    put,
    rows,
    run,
    stored,
    turn,
    write_parquet,
)

import phi3v_data
from phi3v_data.cli.app import main
from phi3v_data.testing import check_converter


def test_official_folder(tmp_path: Path) -> None:
    result = run("hateful_memes", memes_official(tmp_path / "s"), tmp_path / "o")
    counts = {name: split.rows for name, split in result.manifest.splits.items()}
    assert counts == {"train": 3, "dev_seen": 2, "dev_unseen": 2, "test_seen": 1, "test_unseen": 1}
    assert result.manifest.rejects == {"image-missing": 1}
    assert result.manifest.metrics == ("auroc", "accuracy")
    assert result.manifest.classes == ("No", "Yes")
    first, second, _ = rows(tmp_path / "o", "hateful_memes_train.jsonl")
    assert turn(first) == ("Is this an offensive meme?\nAnswer yes or no.", "No")
    assert turn(second)[1] == "Yes"
    assert (images(first), first["group"], first["meta"]) == (["img/01235.png"], "01235", {"source_id": "01235"})
    assert len(stored(tmp_path / "o")) == 8, "an image of two splits is stored once"
    assert set(findings(tmp_path / "o")) == {"leak-sample", "leak-group", "leak-image"}, "73014 is in both dev splits"


def test_a_reject_names_the_image_and_repeats_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = memes_official(tmp_path / "s")
    with (source / "train.jsonl").open("a") as file:
        file.write(f'{{"id": 1, "img": 7, "text": "{SECRET}", "label": "{SECRET}"}}\n')
        file.write(f"{SECRET}\n")
        file.write(f'["{SECRET}"]\n')
    with pytest.raises(SystemExit) as stopped:
        _cli("convert", "hateful_memes", "--source", source, "--out_dir", tmp_path / "o", "--workers", "0")
    assert stopped.value.code == 1
    told = capsys.readouterr()
    rejected = rows(tmp_path / "o", "rejects.jsonl")
    assert {reject["reason"] for reject in rejected} == {"image-missing", "row-invalid"}
    assert any("img/26419.png" in reject["message"] for reject in rejected)
    assert len(rejected) == 4
    for text in (told.out, told.err, (tmp_path / "o/rejects.jsonl").read_text()):
        assert SECRET not in text


def _cli(*args: object) -> None:
    import sys

    sys.argv = ["phi3v-data", *map(str, args)]
    main()


def test_phase_one_and_packed_images(tmp_path: Path) -> None:
    source = memes_official(tmp_path / "s")
    for file in source.glob("*_*.jsonl"):
        file.unlink()
    put(source / "dev.jsonl", json_lines([meme(45, 0), meme(97432, 1)]))
    put(source / "test.jsonl", json_lines([meme(16395, None)]))
    with tarfile.open(source / "img.tar.gz", "w:gz") as archive:
        archive.add(source / "img", "img")
    for image in (source / "img").iterdir():
        image.unlink()
    (source / "img").rmdir()
    result = run("hateful_memes", source, tmp_path / "o", unlabelled=True)
    assert {name: (split.rows, split.labelled) for name, split in result.manifest.splits.items()} == {
        "train": (3, True),
        "dev": (2, True),
        "test": (1, False),
    }
    assert turn(rows(tmp_path / "o", "hateful_memes_test.jsonl")[0])[1] == ""
    assert "img/00045.png" in stored(tmp_path / "o")


def mirror(split: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**meme(*entry), "image": embedded(entry[0]), **changes} for entry in MEMES[split]]


def test_hub_mirror(tmp_path: Path) -> None:
    for split, name in (("train", "train"), ("dev_seen", "validation"), ("test_seen", "test")):
        write_parquet(tmp_path / "s" / "data" / f"{name}-00000-of-00001.parquet", mirror(split, label=0))
    result = run("hateful_memes", tmp_path / "s", tmp_path / "o")
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert rows(tmp_path / "o", "hateful_memes_train.jsonl")[0]["meta"] == {"source_id": "01235"}


def test_a_mirror_without_some_images_and_labels(tmp_path: Path) -> None:
    table = mirror("train", label=-1)
    table[0]["image"] = None
    del table[1]["img"], table[0]["img"], table[2]["img"]
    write_parquet(tmp_path / "s" / "train.parquet", table)
    result = run("hateful_memes", tmp_path / "s", tmp_path / "o", unlabelled=True)
    assert result.manifest.rejects == {"image-missing": 1}
    assert not result.manifest.splits["train"].labelled
    assert rows(tmp_path / "o", "hateful_memes_train.jsonl")[0]["meta"]["source_id"] == "42953"
    assert run_without(tmp_path) == {"empty-text": 2, "image-missing": 1}


def run_without(tmp_path: Path) -> dict[str, int]:
    """Without the flag nothing is left, and the error counts why."""
    with pytest.raises(phi3v_data.UserError) as caught:
        run("hateful_memes", tmp_path / "s", tmp_path / "p")
    assert "none of 3 planned samples" in str(caught.value)
    return {"empty-text": 2, "image-missing": 1} if "2 empty-text, 1 image-missing" in str(caught.value) else {}


def test_the_prompt_may_hold_the_words_on_the_meme(tmp_path: Path) -> None:
    options = {"prompt": "It says {text}. Hateful?"}
    run("hateful_memes", memes_official(tmp_path / "s"), tmp_path / "o", options=options)
    assert turn(rows(tmp_path / "o", "hateful_memes_train.jsonl")[0])[0] == f"It says {SECRET} 1235. Hateful?"


def test_the_cauldron(tmp_path: Path) -> None:
    result = run("hateful_memes", cauldron(tmp_path / "s", ["hateful_memes", "vqav2"]), tmp_path / "o")
    assert (result.manifest.name, result.samples) == ("hateful_memes", 9)
    with pytest.raises(phi3v_data.UserError, match="'vqav2' of the_cauldron, not 'hateful_memes'"):
        run("hateful_memes", cauldron(tmp_path / "t", ["vqav2"]), tmp_path / "p")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "s" / "rows.jsonl", "{}")
    with pytest.raises(phi3v_data.NotFoundError, match="no annotations of Hateful Memes"):
        run("hateful_memes", tmp_path / "s", tmp_path / "o")


@pytest.mark.parametrize("spelled", ["memes", "../{}/memes"])
def test_a_damaged_image_is_named_from_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    source = memes_official(tmp_path / "memes")
    put(source / "img" / "01235.png", "no image at all")
    monkeypatch.chdir(tmp_path)
    run("hateful_memes", spelled.format(tmp_path.name), tmp_path / "o")
    messages = [reject["message"] for reject in rows(tmp_path / "o", "rejects.jsonl")]
    assert "img/01235.png is not an image (a text file)" in messages


def test_check_converter(tmp_path: Path) -> None:
    check_converter("hateful_memes", memes_official(tmp_path / "s"))
