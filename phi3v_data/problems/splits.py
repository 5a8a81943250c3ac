"""Problems across files: splits, shards, leaks, labels, the manifest."""

import hashlib
import json
from typing import Any

from phi3v_data.problems.example import Content, Example, ImageFile, Text, row
from phi3v_data.problems.model import Problem

_A, _B = ImageFile(96, 72), ImageFile(96, 72, seed=1)


def _manifest(**more: Any) -> Text:
    value = {"format": 1, "name": "example", "task": "classification", "splits": {}, **more}
    return Text(json.dumps(value, indent=2) + "\n")


def _files(train: str, held_out: str, **images: ImageFile) -> Example:
    files: dict[str, Content] = {"train.jsonl": Text(train), "val.jsonl": Text(held_out)}
    files.update({f"images/{name}.png": image for name, image in images.items()})
    return Example(files)


def _split(file: str, text: str, num_rows: int = 1) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"rows": num_rows, "images": 0, "files": {file: f"sha256:{digest}"}}


def _labels(train: str, val: str) -> Example:
    train_row = row("a", user="Which animal barks?", assistant=train)
    val_row = row("b", user="Which animal purrs?", assistant=val)
    splits = {"train": _split("train.jsonl", train_row), "val": _split("val.jsonl", val_row)}
    return Example(
        {
            "train.jsonl": Text(train_row),
            "val.jsonl": Text(val_row),
            "dataset.json": _manifest(classes=["cat", "dog"], splits=splits),
        }
    )


SPLITS = (
    Problem(
        "split-empty",
        "splits",
        "error",
        "a split has no rows",
        "The file is empty or contains only blank lines; or the directory contains no NAME_SPLIT.jsonl at all.",
        "Training without samples ends at once; an evaluation without samples reports 0 or fails at the end of a run.",
        Example({"train.jsonl": Text(row("a")), "val.jsonl": Text("")}),
        "Remove the file, or find out why nothing was written.",
    ),
    Problem(
        "split-name",
        "splits",
        "error",
        "the name of a JSONL file does not determine its split",
        "Files are called NAME_SPLIT.jsonl or SPLIT.jsonl, shards NAME_SPLIT-00000-of-00008.jsonl. This name contains "
        "no split, or two files claim the same split.",
        "Its rows are left out of training, or a split is read twice.",
        Example({"train.jsonl": Text(row("a")), "samples.jsonl": Text(row("b"))}),
        "Rename it; `phi3v-data merge DIR OUT` joins files with different names.",
    ),
    Problem(
        "shard-missing",
        "splits",
        "error",
        "a file of a split is missing",
        "The names of the shards contain their number, or dataset.json lists the file.",
        "The run trains on part of the data without an error.",
        Example({"docs_train-00000-of-00002.jsonl": Text(row("a"))}),
        "Copy the file again from its source; an interrupted copy is the usual cause.",
    ),
    Problem(
        "leak-sample",
        "splits",
        "error",
        "the same sample is in two splits",
        "Question, answer and images are the same. Images are compared by pixels at level full, by path at level "
        "quick.",
        "Scores on a held-out split no longer measure how the model does on unseen samples.",
        _files(row("a", "a.png"), row("b", "b.png"), a=_A, b=_A),
        "Drop it from one of them with `phi3v-data clean`, or run `phi3v-data split` on the joined rows.",
        severity_note="a warning between two held-out splits",
    ),
    Problem(
        "leak-group",
        "splits",
        "error",
        "the same group is in two splits",
        "`group` names what belongs together: clips cut from one film, pages of one document, photographs of "
        "one patient.",
        "The model recognises the film, not what happens in it, and the held-out score rewards that.",
        _files(
            row("a", user="What happens first?", group="film/g01"),
            row("b", user="What happens last?", group="film/g01"),
        ),
        "Split by group, as `phi3v-data split DIR OUT --split train=0.9,val=0.1` does.",
        severity_note="a warning between two held-out splits",
    ),
    Problem(
        "leak-image",
        "splits",
        "error",
        "the same image is in two splits",
        "The pixels are the same, whatever the files are called and however they are compressed. At level quick only "
        "equal paths are found.",
        "The model has seen the image with another question, and may answer from memory.",
        _files(row("a", "a.png"), row("b", "b.png", user="Is it round?", assistant="No."), a=_A, b=_A),
        "Keep an image in one split, as `phi3v-data split` does; `convert --split` needs the same `group` in its rows.",
        severity_note="an error if one row of train contains all images of the held-out row; a warning if train "
        "contains only some of them, or between two held-out splits",
    ),
    Problem(
        "leak-near-image",
        "splits",
        "warning",
        "an image of one split looks almost like one of another",
        "Their difference hashes differ in at most 4 bits and their small grey versions are nearly equal: the same "
        "image stored twice with other compression or size, neighbouring frames of one film, two scans of one page.",
        "It is often a leak, but only a look can tell: two frames of a static camera always look alike.",
        _files(
            row("a", "a.png"),
            row("b", "b.png", user="Is it round?", assistant="No."),
            a=_A,
            b=ImageFile(96, 72, shade=3),
        ),
        "Look at both. If they have the same origin, give their rows the same `group` and split by it.",
    ),
    Problem(
        "duplicate-sample",
        "splits",
        "warning",
        "the same sample is in a split twice",
        "Question, answer and images are the same under two ids. In a file of another tool, rows are compared by their "
        "bytes: behind the id if that comes first, else wholly. Rows that differ in escapes, in the order of keys, in "
        "white space or in another column are found in the directory that an import makes of the file.",
        "It counts twice in training and in scores.",
        Example({"train.jsonl": Text(row("a", "a.png") + row("b", "a.png")), "images/a.png": _A}),
        "Drop one with `phi3v-data clean DIR OUT --drop duplicate-sample`, unless it is intended.",
    ),
    Problem(
        "label-unknown",
        "splits",
        "error",
        "an answer is not among the class names",
        "dataset.json lists the classes of a classification set; the answer of a row is not one of them. Letter case "
        "matters.",
        "A misspelt class becomes an additional class, which the model can never predict correctly.",
        _labels("dog", "Cat"),
        "Correct the answer, or add the class to dataset.json.",
    ),
    Problem(
        "label-missing-in-train",
        "splits",
        "warning",
        "a held-out split has a class that train lacks",
        "Some rows of a held-out split have a class that no row of train has.",
        "The model is asked for an answer that it was never trained on.",
        _labels("dog", "cat"),
        "Split again so that every class is in train, or leave the class out.",
    ),
    Problem(
        "manifest-invalid",
        "splits",
        "error",
        "dataset.json does not match the format",
        "It is not JSON, lacks a key, has an unknown key or a wrong type, contains a path where a name of a set, split "
        "or file is expected, or was written by a newer version.",
        "Task, metrics, class names and number of crops are ignored, so the run differs from what was intended.",
        Example({"train.jsonl": Text(row("a")), "dataset.json": Text('{"format": 1, "name": "example"}\n')}),
        "Write the directory again with its converter, or remove the file: the directory is then a bare one.",
    ),
    Problem(
        "manifest-stale",
        "splits",
        "error",
        "dataset.json disagrees with the files",
        "The number of rows or images, or the digest of a JSONL file, differs from dataset.json.",
        "The files were edited, or a copy is incomplete, so the manifest can no longer be relied on.",
        Example(
            {
                "train.jsonl": Text(row("a")),
                "dataset.json": _manifest(splits={"train": _split("train.jsonl", row("a"), 2)}),
            }
        ),
        "Write the directory again with the converter, `clean`, `split` or `merge` instead of editing it.",
    ),
)
