"""A name that is nearly right: the message names what was probably meant."""

import shutil
from pathlib import Path

import pytest
from colour_sets import colour_directory

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError
from phi3v_data.validate import validate
from phi3v_train.models.locate import locate
from phi3v_train.models.phi3v.tiny import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny(folder)
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs: one finished, one that has only checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(tiny, "r/model")
    for step in (2, 4):
        shutil.copytree(tiny, f"stopped/checkpoint-00000{step}")
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("r/modle", "--model_name_or_path r/modle: no such directory; did you mean r/model?"),
        ("./r/modle", "--model_name_or_path ./r/modle: no such directory; did you mean r/model?"),
        ("r", "r: is not a model directory (it has no config.json); did you mean r/model?"),
        ("stopped", "is not a model directory (it has no config.json); did you mean stopped/checkpoint-000004?"),
        ("stoped/checkpoint-000002", "the Hub cannot be reached"),
        ("r/model/config.json", "r/model/config.json: is a file; give a model directory; did you mean r/model?"),
        ("nothing_like_it", "nothing_like_it: no such directory; give a model directory, a Hub id such as"),
        ("./nothing_like_it", "./nothing_like_it: no such directory; give a model directory, a Hub id such as"),
        ("/nothing_like_it", "/nothing_like_it: no such directory; give a model directory, a Hub id such as"),
        ("~/nothing_like_it", "~/nothing_like_it: no such directory; give a model directory, a Hub id such as"),
        ("tinny", "--model_name_or_path tinny: no such directory; did you mean tiny?"),
        ("Tiny", "--model_name_or_path Tiny: no such directory; did you mean tiny?"),
        ("microsoft/Phi-3.5-vision-instruct", "the Hub cannot be reached"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there(folder: Path, typed: str, sentence: str) -> None:
    with pytest.raises(NotFoundError if "Hub cannot" not in sentence else Exception) as caught:
        locate(typed)
    assert sentence in str(caught.value)


def test_a_file_in_place_of_a_set(tmp_path: Path) -> None:
    colour_directory(tmp_path / "set")
    file = tmp_path / "set/colours_train.jsonl"
    sentence = (
        f"{file}: is a file; give the directory that contains it: {tmp_path / 'set'}; "
        f"rows of another tool: `phi3v-data import auto {file} --out_dir DIR`"
    )
    for read in (Dataset, validate):
        with pytest.raises(NotFoundError) as caught:
            read(file)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(("typed", "meant"), [("validation", "val"), ("vla", "val"), ("Train", "train"), ("x", None)])
def test_a_split_that_is_not_there(tmp_path: Path, typed: str, meant: str | None) -> None:
    dataset = Dataset(colour_directory(tmp_path / "set"))
    with pytest.raises(NotFoundError) as caught:
        dataset[typed]
    hint = f"; did you mean {meant!r}?" if meant else ""
    assert str(caught.value) == f"{tmp_path / 'set'}: no split {typed!r}; it has train, val{hint}"
