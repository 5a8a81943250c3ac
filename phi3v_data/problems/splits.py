"""Problems between files: splits, shards, leaks, labels, the manifest."""

import hashlib
import json
from typing import Any

from phi3v_data.problems.example import Content, Example, Picture, Text, row
from phi3v_data.problems.model import Problem

_A, _B = Picture(96, 72), Picture(96, 72, seed=1)


def _manifest(**more: Any) -> Text:
    value = {"format": 1, "name": "example", "task": "classification", "splits": {}, **more}
    return Text(json.dumps(value, indent=2) + "\n")


def _files(train: str, held_out: str, **pictures: Picture) -> Example:
    files: dict[str, Content] = {"train.jsonl": Text(train), "val.jsonl": Text(held_out)}
    files.update({f"images/{name}.png": picture for name, picture in pictures.items()})
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
        "The file is empty or holds blank lines only; or the directory holds no NAME_SPLIT.jsonl at all.",
        "Training on nothing ends at once; an evaluation on nothing reports 0 or fails at the end of a run.",
        Example({"train.jsonl": Text(row("a")), "val.jsonl": Text("")}),
        "Remove the file, or find out why nothing was written.",
    ),
    Problem(
        "split-name",
        "splits",
        "error",
        "a JSONL file's name does not say which split it is",
        "A file is called NAME_SPLIT.jsonl or SPLIT.jsonl, shards NAME_SPLIT-00000-of-00008.jsonl. No split "
        "can be read off this name, or two files claim one split.",
        "Its rows are left out of training, or a split is read twice.",
        Example({"train.jsonl": Text(row("a")), "samples.jsonl": Text(row("b"))}),
        "Rename it; `phi3v-data merge DIR OUT` joins files with different names.",
    ),
    Problem(
        "shard-missing",
        "splits",
        "error",
        "a file of a split is not there",
        "The names of the shards say how many there are, or dataset.json lists the file.",
        "The run trains on part of the data and nobody notices.",
        Example({"docs_train-00000-of-00002.jsonl": Text(row("a"))}),
        "Copy the file again from its source; an interrupted copy is the usual cause.",
    ),
    Problem(
        "leak-sample",
        "splits",
        "error",
        "the same sample stands in two splits",
        "Question, answer and pictures are the same, pictures by their pixels at level full, by their path "
        "at level quick.",
        "Scores on a held-out split no longer say how the model does on what it has not seen.",
        _files(row("a", "a.png"), row("b", "b.png"), a=_A, b=_A),
        "Drop it from one of them: `phi3v-data clean`, or `phi3v-data split` over the joined rows.",
        severity_note="a warning between two held-out splits",
    ),
    Problem(
        "leak-group",
        "splits",
        "error",
        "a group stands in two splits",
        "`group` names what belongs together: clips cut from one film, pages of one document, photographs of "
        "one patient.",
        "The model recognises the film, not what happens in it, and the held-out score rewards that.",
        _files(
            row("a", user="What happens first?", group="film/g01"),
            row("b", user="What happens last?", group="film/g01"),
        ),
        "Split by group: `phi3v-data split DIR OUT --split train=0.9,val=0.1` does.",
        severity_note="a warning between two held-out splits",
    ),
    Problem(
        "leak-image",
        "splits",
        "error",
        "a picture stands in two splits",
        "The pixels are the same, whatever the files are called and however they are compressed. At level "
        "quick only equal paths are seen.",
        "The model has seen the picture with another question, and may answer from memory.",
        _files(row("a", "a.png"), row("b", "b.png", user="Is it round?", assistant="No."), a=_A, b=_A),
        "Keep a picture in one split: give its rows one `group` and split by it.",
        severity_note="an error where one row of train holds all pictures of the held-out row; a warning where train "
        "holds only some of them, or between two held-out splits",
    ),
    Problem(
        "leak-near-image",
        "splits",
        "warning",
        "a picture of one split looks almost like one of another",
        "Their difference hashes are at most 4 bits apart and their small grey versions nearly equal: the same picture "
        "stored twice with other compression or size, neighbouring frames of one film, two scans of one page.",
        "Much like a leak, but it takes a look to tell: two frames of a static camera are alike by nature.",
        _files(
            row("a", "a.png"),
            row("b", "b.png", user="Is it round?", assistant="No."),
            a=_A,
            b=Picture(96, 72, shade=3),
        ),
        "Look at both. If they come from one source, give their rows one `group` and split by it.",
    ),
    Problem(
        "duplicate-sample",
        "splits",
        "warning",
        "the same sample stands twice in a split",
        "Question, answer and pictures are the same under two ids.",
        "It weighs twice in training and in scores.",
        Example({"train.jsonl": Text(row("a", "a.png") + row("b", "a.png")), "images/a.png": _A}),
        "Drop one with `phi3v-data clean DIR OUT --drop duplicate-sample`, unless the weight is meant.",
    ),
    Problem(
        "label-unknown",
        "splits",
        "error",
        "an answer is not among the class names",
        "dataset.json gives the classes of a classification set; the answer of a row is none of them. Letter "
        "case counts.",
        "A misspelt class is a class of its own: the model can never be right on it.",
        _labels("dog", "Cat"),
        "Correct the answer, or add the class to dataset.json.",
    ),
    Problem(
        "label-missing-in-train",
        "splits",
        "warning",
        "a held-out split has a class that train lacks",
        "Some rows of a held-out split have a class that no row of train shows.",
        "The model is asked for an answer that it was never taught.",
        _labels("dog", "cat"),
        "Split again so that every class is in train, or leave the class out.",
    ),
    Problem(
        "manifest-invalid",
        "splits",
        "error",
        "dataset.json is not what the format says",
        "It is not JSON, lacks a key, has an unknown one or a wrong type, names a set, split or file by a path, or was "
        "written by a newer version.",
        "Task, metrics, class names and number of crops are not used, so the run differs from what was meant.",
        Example({"train.jsonl": Text(row("a")), "dataset.json": Text('{"format": 1, "name": "example"}\n')}),
        "Write the directory again with its converter, or remove the file: without it the directory is a bare one.",
    ),
    Problem(
        "manifest-stale",
        "splits",
        "error",
        "dataset.json disagrees with the files",
        "Numbers of rows or pictures, or the digest of a JSONL file, are not what dataset.json says.",
        "The files were edited, or a copy is incomplete; what the manifest promises no longer holds.",
        Example(
            {
                "train.jsonl": Text(row("a")),
                "dataset.json": _manifest(splits={"train": _split("train.jsonl", row("a"), 2)}),
            }
        ),
        "Write the directory again with the converter, `clean`, `split` or `merge` instead of editing it.",
    ),
)
