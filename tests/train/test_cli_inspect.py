"""`phi3v-train inspect`: what it shows is what the loader would hand to the model."""

import json
import shutil

import pytest
from sample_dirs import GOLDEN, mixed_directory, renderer, write_rows

from phi3v_data.cli.base import CommandSpec, make_group, run
from phi3v_data.schema import Sample, Turn
from phi3v_train.data.encode import Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
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
            assert {label != NO_LABEL for label in labels} == {span["kind"] == "learnt"}
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
    assert "<|image_3|> x " in out
    assert out.splitlines()[-1].split()[1] == "supervised"
    assert "learnt" not in out
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
    code, out, _ = inspect(write_rows(tmp_path / "d", [row], "test"), "--split", "test")
    assert code == 0
    assert "no answer in this row" in out
    assert out.rstrip().endswith("<|assistant|>")


def test_random_answers_are_those_of_the_run(inspect, directory):
    shown = set()
    for epoch in range(12):
        _, out, _ = inspect(
            directory, "--row", 1, "--num_crops", 1, "--answer_choice", "random", "--epoch", epoch, "--json"
        )
        shown.add(tuple(json.loads(out)["labels"]))
    assert len(shown) == 4
