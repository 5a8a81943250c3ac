"""`phi3v-train inspect`: what it shows is what the loader would hand to the model."""

import io
import json
import re
import shutil

import pytest
from sample_dirs import GOLDEN, mixed_directory, renderer, write_manifest, write_rows

from phi3v_data.cli.base import CommandSpec, make_group, run
from phi3v_data.console import make_console
from phi3v_data.schema import Sample, Turn
from phi3v_train.data.encode import Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
from phi3v_train.inspection.terminal import show
from phi3v_train.inspection.view import view_row
from phi3v_train.models.renderer import NO_LABEL


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    shutil.copytree(GOLDEN / "tiny_tokenizer", directory, dirs_exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return mixed_directory(tmp_path_factory.mktemp("inspect") / "d")


@pytest.fixture
def inspect(model, capsys):
    def call(*args: object) -> tuple[int, str, str]:
        group = make_group("phi3v-train", "", {"inspect": CommandSpec("phi3v_train.cli.inspect:inspect", "")})
        with pytest.raises(SystemExit) as stop:
            run(group, ["inspect", *map(str, args), "--model_name_or_path", str(model)])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def test_json_is_what_the_loader_gives(inspect, directory):
    reader = Reader([open_source(directory, "train", num_crops=4)], Encoder(renderer()))
    for row in (0, 2, 3, 7, 11):
        code, out, _ = inspect(directory, "--row", row, "--num_crops", 4, "--json")
        view = json.loads(out)
        encoded = reader.encode(SampleRef(0, row, 0))
        assert code == 0
        assert view["input_ids"] == encoded.input_ids.tolist()
        assert view["labels"] == encoded.labels.tolist()
        assert view["num_supervised"] == encoded.num_supervised
        assert [[image["canvas_height"], image["canvas_width"]] for image in view["images"]] == (
            [image["image_sizes"].tolist() for image in encoded.images]
        )
        position = 0
        for span in view["spans"]:
            ids = view["input_ids"][position : position + span["length"]]
            labels = view["labels"][position : position + span["length"]]
            assert span["start"] == position
            assert {label != NO_LABEL for label in labels} == {span["kind"] == "supervised"}
            assert set(ids) == {-span["image"]} if span["image"] else len(span["tokens"]) == len(ids)
            position += span["length"]
        assert position == len(view["input_ids"]) == view["num_tokens"]


def test_text_for_people(inspect, directory):
    code, out, err = inspect(directory, "--row", 7, "--num_crops", 4)
    assert (code, err) == (0, "")
    assert "set_train.jsonl:8" in out
    assert "id train-0000000007  (split train, row 7 of 12)" in out
    assert "<|image_1|> 1/p7_0.jpg: 480 x 640 on a canvas of 672 x 672, 2 x 2 tiles + global view, 757 tokens" in out
    assert "2 turns, 3 images" in out
    assert "num_crops 4 (option)" in out
    assert "[image 3: 757 tokens]" in out
    assert out.splitlines()[-1].split()[1] == "supervised"
    assert out.rstrip().endswith("<|end|> ▁ ⏎ <|endoftext|>")
    assert "\x1b" not in out


def test_by_id_and_by_split(inspect, directory):
    assert inspect(directory, "--id", "train-0000000003", "--json") == inspect(directory, "--row", 3, "--json")
    code, _, err = inspect(directory, "--id", "nobody")
    assert (code, "no sample with the id 'nobody'" in err) == (2, True)
    code, _, err = inspect(directory, "--split", "trian")
    assert (code, "did you mean 'train'?" in err) == (2, True)
    code, _, err = inspect(directory, "--row", 12)
    assert (code, "rows 0 to 11" in err) == (2, True)
    code, _, err = inspect(directory, "--row", 1, "--id", "x")
    assert (code, "one of them" in err) == (2, True)


def test_over_max_length(inspect, directory):
    code, out, _ = inspect(directory, "--row", 8, "--max_length", 60)
    assert code == 1
    assert "refused: it has 70 tokens, over --max_length 60" in out
    code, out, _ = inspect(directory, "--row", 8, "--max_length", 60, "--truncate", "turns")
    assert code == 0
    assert "cut: 1 turn at the end left out" in out


def test_an_unlabelled_row(inspect, tmp_path):
    row = Sample(id="t", source="s", conversations=(Turn(user="What?", assistant=""),))
    directory = write_rows(tmp_path / "d", [row], "test")
    code, out, err = inspect(directory, "--split", "test", "--num_crops", 4)
    assert (code, err) == (1, "1 of 1 row would train nothing: set_test.jsonl:1\n")
    write_manifest(directory, labelled=False)
    code, out, err = inspect(directory, "--split", "test", "--num_crops", 4)
    assert (code, err) == (0, "")
    assert "no answer in this row" in out
    assert out.rstrip().endswith("<|assistant|>")
    _, out, _ = inspect(directory, "--split", "test", "--json")
    assert json.loads(out)["template"] == "<|user|>\nWhat?<|end|>\n<|assistant|>\n"


def rows_of(out: str) -> list[int]:
    return [view["row"] for view in json.loads(out)]


def test_several_rows(inspect, directory):
    code, out, err = inspect(directory, "--rows", "3, 7,10-11,7", "--json", "--num_crops", 4)
    assert (code, err, rows_of(out)) == (0, "", [3, 7, 10, 11])
    _, single, _ = inspect(directory, "--row", 7, "--json", "--num_crops", 4)
    assert json.loads(out)[1] == json.loads(single)
    _, out, _ = inspect(directory, "--rows", "0-1", "--num_crops", 1)
    assert [line.split()[0].rpartition("/")[2] for line in out.splitlines() if "  id " in line] == [
        "set_train.jsonl:1",
        "set_train.jsonl:2",
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rows", "3-"], "--rows '3-': write numbers and ranges from 0 on, such as 0-9 or 3,7,10-12"),
        (["--rows", "-3"], "--rows '-3': write numbers and ranges"),
        (["--rows", ""], "--rows '': write numbers and ranges"),
        (["--rows", "9-3"], "--rows '9-3': the range 9-3 ends before it begins"),
        (["--rows", "3,9-12"], "--rows 12: split 'train' has the rows 0 to 11"),
        (["--rows", "1", "--random", "2"], "--rows and --random all choose rows: give one of them"),
        (["--html", "a.html", "--json"], "--html and --json are two forms of the same"),
    ],
)
def test_rows_that_cannot_be_chosen(inspect, directory, args, words):
    code, out, err = inspect(directory, *args)
    assert (code, out, words in err) == (2, "", True)


def test_rows_drawn_with_a_seed_are_the_same_rows(inspect, directory):
    def drawn(count, seed):
        return rows_of(inspect(directory, "--random", count, "--seed", seed, "--json", "--num_crops", 1)[1])

    first = drawn(4, 1)
    assert len(set(first)) == 4
    assert first == sorted(first) == drawn(4, 1)
    assert len({tuple(drawn(4, seed)) for seed in range(6)}) > 1
    assert drawn(50, 1) == list(range(12))


def test_rows_that_train_nothing_are_shown_and_named(inspect, tmp_path):
    def turn(assistant, weight=1, **more):
        return Turn(user="What?", assistant=assistant, weight=weight, **more)

    rows = [
        Sample(id="good", source="s", conversations=(turn("one", 0), turn("two"))),
        Sample(id="none", source="s", conversations=(turn("one", 0), turn("two", 0))),
        Sample(id="gone", source="s", conversations=(turn("one", images=("gone.png",)),)),
        Sample(id="tag", source="s", conversations=(turn("one").model_copy(update={"user": "<|image_1|>"}),)),
    ]
    directory = write_rows(tmp_path / "d", rows)
    code, out, err = inspect(directory, "--rows", "0-3", "--json", "--num_crops", 4)
    assert code == 1
    assert err == "3 of 4 rows would train nothing: set_train.jsonl:2, set_train.jsonl:3, set_train.jsonl:4\n"
    views = json.loads(out)
    assert [view["id"] for view in views] == ["good", "none", "gone", "tag"]
    assert [view["num_supervised"] > 0 for view in views] == [True, False, False, False]
    assert [bool(view["refusal"]) for view in views] == [False, True, True, True]
    assert len(views[1]["input_ids"]) == len(views[0]["input_ids"])
    assert views[1]["template"] == views[0]["template"]
    assert "gone.png: No such file" in views[2]["refusal"]
    assert inspect(directory, "--row", 0)[0] == 0
    code, out, err = inspect(directory, "--row", 1)
    assert code == 1
    assert out.rstrip().endswith("weight 1 to an answer, or remove the row")
    assert "refused: all its 2 turns have weight 0" in out


def test_no_escape_code_of_the_data_reaches_the_terminal(inspect, tmp_path):
    evil = "\x1b[31m\x9b2J\u202e\x07 text"
    row = Sample(id=evil, source="s", conversations=(Turn(user=evil, assistant=evil),))
    code, out, err = inspect(write_rows(tmp_path / "d", [row]), "--row", 0)
    assert code == 0
    assert not set("\x1b\x9b\u202e\x07") & set(out + err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_and_not_where_no_color_is_set(directory, monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    reader = Reader([open_source(directory, "train", num_crops=1)], Encoder(renderer()))
    stream = Terminal()
    show(make_console(stream), view_row(reader, SampleRef(0, 1, 0)))
    colours = set(re.findall("\x1b\\[[0-9;]*3[0-9][0-9;]*m", stream.getvalue()))
    assert colours == (set() if no_color else {"\x1b[1;32m", "\x1b[36m"})


def test_random_answers_are_those_of_the_run(inspect, directory):
    shown = set()
    for epoch in range(12):
        _, out, _ = inspect(
            directory, "--row", 1, "--num_crops", 1, "--answer_choice", "random", "--epoch", epoch, "--json"
        )
        shown.add(tuple(json.loads(out)["labels"]))
    assert len(shown) == 4
