"""DocVQA in every layout, and what is done with several answers or none."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from converter_sources import (
    DOCVQA,
    annotation,
    docvqa_official,
    docvqa_older,
    embedded,
    encoded,
    findings,
    images,
    put,
    question,
    rows,
    run,
    stored,
    turn,
    write_parquet,
)

import phi3v_data
from phi3v_data.testing import check_converter


def test_official_folder(tmp_path: Path) -> None:
    result = run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o", unlabelled=True)
    assert {name: split.rows for name, split in result.manifest.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert {name: split.labelled for name, split in result.manifest.splits.items()} == {
        "train": True,
        "val": True,
        "test": False,
    }
    assert result.manifest.metrics == ("anls",)
    assert stored(tmp_path / "o") == ["test/p4.png", "train/p1.png", "train/p2.png", "val/p3.png"]
    first, second, *_ = rows(tmp_path / "o", "docvqa_train.jsonl")
    assert turn(first) == ("How many are in line 11?\nAnswer briefly.", "Seven")
    assert first["answers"] == ["Seven", "7"]
    assert second["answers"] == ["north", "North", "north"]
    assert (first["group"], first["meta"], first["id"]) == ("1", {"source_id": "11"}, "train-0000000000")
    test = rows(tmp_path / "o", "docvqa_test.jsonl")[0]
    assert turn(test)[1] == ""
    assert "answers" not in test
    assert (tmp_path / "o/images/train/p1.png").read_bytes() == encoded(1)
    assert findings(tmp_path / "o") == {}


def test_splits_without_answers_need_the_flag(tmp_path: Path) -> None:
    result = run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o")
    assert sorted(result.manifest.splits) == ["train", "val"]
    assert result.manifest.rejects == {"empty-text": 2}
    assert all("--unlabelled" in reject["message"] for reject in rows(tmp_path / "o", "rejects.jsonl"))


def test_the_flag_takes_no_answers_from_splits_that_have_them(tmp_path: Path) -> None:
    source = docvqa_official(tmp_path / "s", {"train": DOCVQA["train"]})
    result = run("docvqa", source, tmp_path / "o", unlabelled=True)
    assert result.manifest.splits["train"].labelled
    assert turn(rows(tmp_path / "o", "docvqa_train.jsonl")[0])[1] == "Seven"


def test_own_splits_refuse_to_mix_rows_without_answers(tmp_path: Path) -> None:
    with pytest.raises(phi3v_data.UserError, match="test of the source has no answers"):
        run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o", unlabelled=True, split="train=0.5,val=0.5")


def test_own_splits_keep_documents_whole(tmp_path: Path) -> None:
    entries = [question(n, f"p{n % 4 + 1}") for n in range(40)]
    run("docvqa", docvqa_official(tmp_path / "s", {"train": entries}), tmp_path / "o", split="train=0.6,val=0.4")
    groups = [{row["group"] for row in rows(tmp_path / "o", f"docvqa_{split}.jsonl")} for split in ("train", "val")]
    assert not groups[0] & groups[1]


def test_older_layout(tmp_path: Path) -> None:
    result = run("docvqa", docvqa_older(tmp_path / "s"), tmp_path / "o", unlabelled=True)
    assert (result.samples, result.rejects, result.images) == (8, 0, 4)


def test_the_file_with_question_types_is_preferred(tmp_path: Path) -> None:
    source = docvqa_official(tmp_path / "s")
    put(source / "spdocvqa_qas" / "train_v1.0.json", annotation("train", DOCVQA["train"]))
    assert run("docvqa", source, tmp_path / "o").manifest.splits["train"].rows == 4


def test_two_files_for_a_split_are_refused(tmp_path: Path) -> None:
    source = docvqa_official(tmp_path / "s")
    put(source / "again" / "val_v1.0_withQT.json", annotation("val", DOCVQA["val"]))
    with pytest.raises(phi3v_data.UserError, match="split val exists twice"):
        run("docvqa", source, tmp_path / "o")


def test_archives_as_they_are_downloaded(tmp_path: Path) -> None:
    whole = docvqa_official(tmp_path / "s")
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "spdocvqa_images.tar.gz", "w:gz") as archive:
        archive.add(whole / "spdocvqa_images", "spdocvqa_images")
    with zipfile.ZipFile(packed / "spdocvqa_qas.zip", "w") as archive:
        for file in (whole / "spdocvqa_qas").iterdir():
            archive.write(file, f"spdocvqa_qas/{file.name}")
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        archive.add(whole, "docvqa")
    run("docvqa", whole, tmp_path / "o", unlabelled=True)
    for source in (packed, tmp_path / "one.tar"):
        out = tmp_path / f"o-{source.name}"
        run("docvqa", source, out, unlabelled=True)
        for name in ("docvqa_train.jsonl", "docvqa_val.jsonl", "docvqa_test.jsonl", "dataset.json"):
            assert (out / name).read_bytes() == (tmp_path / "o" / name).read_bytes()


def test_what_is_missing_or_wrong_is_counted(tmp_path: Path) -> None:
    broken: list[Any] = [{"questionId": 5, "image": "documents/p1.png"}, "no object", question(99, "p9")]
    source = docvqa_official(tmp_path / "s", {"train": [*DOCVQA["train"], *broken]})
    result = run("docvqa", source, tmp_path / "o")
    assert result.manifest.rejects == {"image-missing": 1, "row-invalid": 2}
    assert result.samples == 4
    assert rows(tmp_path / "o", "rejects.jsonl")[2]["item"] == "train_v1.0_withQT.json[6]"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ('{"rows": []}', "no list 'data'"), ("\udcff", "is not JSON in UTF-8")],
)
def test_damaged_annotations_are_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    source = docvqa_official(tmp_path / "s")
    (source / "spdocvqa_qas" / "train_v1.0_withQT.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(phi3v_data.UserError, match=words):
        run("docvqa", source, tmp_path / "o")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "s" / "train.json", "{}")
    with pytest.raises(phi3v_data.NotFoundError, match="contains no DocVQA annotations"):
        run("docvqa", tmp_path / "s", tmp_path / "o")


class TestAnswers:
    """`--answer first|random|all`."""

    def test_all(self, tmp_path: Path) -> None:
        run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o", options={"answer": "all"}, unlabelled=True)
        made = rows(tmp_path / "o", "docvqa_train.jsonl")
        answers = [turn(row)[1] for row in made]
        assert answers == ["Seven", "7", "north", "North", "a b", "Seven", "7"]
        assert [row["meta"]["source_id"] for row in made] == ["11", "11", "12", "12", "13", "14", "14"]
        assert made[1]["answers"] == ["Seven", "7"]
        assert len(rows(tmp_path / "o", "docvqa_test.jsonl")) == 2

    def test_random_is_a_hash_of_seed_and_id(self, tmp_path: Path) -> None:
        entries = [question(n, "p1", [f"a{k}" for k in range(5)]) for n in range(100, 140)]
        source = docvqa_official(tmp_path / "s", {"train": entries})
        fewer = docvqa_official(tmp_path / "f", {"train": entries[7:]})
        made = {}
        for seed, where in ((0, source), (1, source), (0, fewer)):
            out = tmp_path / f"o{seed}{where.name}"
            run("docvqa", where, out, options={"answer": "random", "answer_seed": seed})
            made[seed, where.name] = {r["meta"]["source_id"]: turn(r)[1] for r in rows(out, "docvqa_train.jsonl")}
        assert len(set(made[0, "s"].values())) == 5
        assert made[0, "s"] != made[1, "s"]
        assert made[0, "f"].items() <= made[0, "s"].items()


def test_the_prompt(tmp_path: Path) -> None:
    run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o", options={"prompt": "Q: {question} A:"})
    assert turn(rows(tmp_path / "o", "docvqa_train.jsonl")[0])[0] == "Q: How many are in line 11? A:"
    with pytest.raises(phi3v_data.UserError, match=r"must contain \{question\}"):
        run("docvqa", tmp_path / "s", tmp_path / "p", options={"prompt": "What?"})


class TestTables:
    """Parquet and save_to_disk."""

    def lmms(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                **entry,
                "questionId": str(entry["questionId"]),
                "image": embedded(entry["docId"]),
                "answers": entry.get("answers"),
            }
            for entry in entries
        ]

    def test_parquet_says_the_same_as_the_official_files(self, tmp_path: Path) -> None:
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            write_parquet(tmp_path / f"p/data/{name}-00000-of-00001.parquet", self.lmms(DOCVQA[split]), row_group=2)
        run("docvqa", tmp_path / "p", tmp_path / "o", unlabelled=True)
        run("docvqa", docvqa_official(tmp_path / "s"), tmp_path / "o2", unlabelled=True)
        for split in ("train", "val", "test"):
            made, official = (rows(out, f"docvqa_{split}.jsonl") for out in (tmp_path / "o", tmp_path / "o2"))
            for one, two in zip(made, official, strict=True):
                assert (tmp_path / "o/images" / images(one)[0]).read_bytes() == (
                    tmp_path / "o2/images" / images(two)[0]
                ).read_bytes()
                one["conversations"][0]["images"] = two["conversations"][0]["images"]
            assert made == official
        assert len(stored(tmp_path / "o")) == 4
        assert findings(tmp_path / "o") == {}

    def test_save_to_disk(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        saved = datasets.Dataset.from_list(self.lmms(DOCVQA["val"])).cast_column("image", datasets.Image())
        datasets.DatasetDict({"validation": saved}).save_to_disk(str(tmp_path / "d"))
        result = run("docvqa", tmp_path / "d", tmp_path / "o")
        assert (result.samples, result.images) == (2, 1)

    def test_1200_examples(self, tmp_path: Path) -> None:
        table = [
            {
                "id": f"train_{n}",
                "image": embedded(n // 2),
                "query": {"de": f"[de] {n}?", "en": f"{n}?"},
                "answers": ["x", "y"],
                "answer": {"text": None},
                "words": ["w"],
            }
            for n in range(6)
        ]
        write_parquet(tmp_path / "s/data/train-00000-of-00001-ff.parquet", table)
        result = run("docvqa", tmp_path / "s", tmp_path / "o")
        made = rows(tmp_path / "o", "docvqa_train.jsonl")
        assert (result.samples, result.images) == (6, 3)
        assert turn(made[3]) == ("3?\nAnswer briefly.", "x")
        assert made[2]["group"] == made[3]["group"] != made[4]["group"]
        assert made[3]["meta"]["source_id"] == "train_3"
        run("docvqa", tmp_path / "s", tmp_path / "de", options={"language": "de"})
        assert turn(rows(tmp_path / "de", "docvqa_train.jsonl")[3])[0] == "[de] 3?\nAnswer briefly."

    def test_pixparse(self, tmp_path: Path) -> None:
        table = [
            {
                "image": embedded(n),
                "question_id": n,
                "question": f"{n}?",
                "answers": ["x"],
                "other_metadata": json.dumps({"doc_id": 7}),
            }
            for n in range(3)
        ]
        write_parquet(tmp_path / "s/train.parquet", table)
        run("docvqa", tmp_path / "s", tmp_path / "o")
        assert {row["group"] for row in rows(tmp_path / "o", "docvqa_train.jsonl")} == {"7"}

    def test_several_configurations(self, tmp_path: Path) -> None:
        for config in ("DocVQA", "InfographicVQA"):
            table = self.lmms([question(ord(config[0]), "p1")])
            write_parquet(tmp_path / "s" / config / "validation-00000-of-00001.parquet", table)
        run("docvqa", tmp_path / "s", tmp_path / "o")
        run("docvqa", tmp_path / "s", tmp_path / "o2", options={"config": "infographicvqa"})
        found = [rows(tmp_path / out, "docvqa_val.jsonl")[0]["meta"]["source_id"] for out in ("o", "o2")]
        assert found == [str(ord("D")), str(ord("I"))]
        with pytest.raises(phi3v_data.NotFoundError, match="it has DocVQA, InfographicVQA"):
            run("docvqa", tmp_path / "s", tmp_path / "o3", options={"config": "x"})

    def test_a_row_without_its_image_is_a_reject(self, tmp_path: Path) -> None:
        table = self.lmms(DOCVQA["train"])
        table[1]["image"] = None
        write_parquet(tmp_path / "s/train.parquet", table)
        assert run("docvqa", tmp_path / "s", tmp_path / "o").manifest.rejects == {"image-missing": 1}

    def test_another_table_is_refused_by_its_columns(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "s/train.parquet", [{"a": 1, "b": 2}])
        with pytest.raises(phi3v_data.UserError, match=r"no column 'question' or 'query'; it has a, b"):
            run("docvqa", tmp_path / "s", tmp_path / "o")


def test_check_converter(tmp_path: Path) -> None:
    check_converter("docvqa", docvqa_official(tmp_path / "s"), unlabelled=True)


def test_rows_of_a_page_that_is_gone_meanwhile_are_rejects(tmp_path: Path) -> None:
    source = docvqa_official(tmp_path / "s")
    shutil.rmtree(source / "spdocvqa_images")
    put(source / "spdocvqa_images/p1.png", encoded(1)[:60])
    put(source / "spdocvqa_images/P2.PNG", encoded(2))
    result = run("docvqa", source, tmp_path / "o", unlabelled=True)
    assert result.manifest.rejects == {"image-missing": 4, "image-unreadable": 3}
    assert result.samples == 1
