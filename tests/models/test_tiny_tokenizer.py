"""The shipped tiny tokenizer: the released one's kind, short answers, and the script that made it."""

import json
from pathlib import Path

import pytest
from golden_files import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from phi3v_train.models.phi3v import tiny
from phi3v_train.models.phi3v.tiny import VOCAB_SIZE, tiny_processor, tiny_tokenizer
from phi3v_train.models.phi3v.tiny.train_tokenizer import write

HERE = Path(tiny.__file__).parent
TOKENIZER = tiny_tokenizer()


def test_the_script_writes_the_shipped_files(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (HERE / name).read_text(encoding="utf-8")


def test_same_kind_as_the_released_one() -> None:
    ours = json.loads((HERE / "tokenizer.json").read_text(encoding="utf-8"))
    golden = json.loads((GOLDEN / "tiny_tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        assert ours[part] == golden[part]
    flags = [{name: value for name, value in token.items() if name != "id"} for token in ours["added_tokens"]]
    assert flags == [{name: value for name, value in token.items() if name != "id"} for token in golden["added_tokens"]]
    settings = [
        {name: value for name, value in one["model"].items() if name not in ("vocab", "merges")}
        for one in (ours, golden)
    ]
    assert settings[0] == settings[1]


def test_ids() -> None:
    assert len(TOKENIZER) == VOCAB_SIZE
    assert TOKENIZER.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<0x0A>"]) == [0, 1, 2, 3, 13]
    first = TOKENIZER.pad_token_id
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>"]
    assert [TOKENIZER.convert_tokens_to_ids(name) - first for name in names] == [0, 1, 6, 7, 10, 44]
    space = TOKENIZER.convert_tokens_to_ids("▁")
    end, user = TOKENIZER.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    assert TOKENIZER("<|user|>\n<|end|>\n<|assistant|>\n")["input_ids"] == [
        1,
        user,
        space,
        13,
        end,
        space,
        13,
        first + 1,
    ]


@pytest.mark.parametrize("answer", ["yes", "no", "Yes", "No", "True", "False", "BabyCrawling", "YoYo", "Archery", "7"])
def test_usual_answers_are_short(answer: str) -> None:
    ids = TOKENIZER(answer, add_special_tokens=False)["input_ids"]
    assert len(ids) <= 2
    assert TOKENIZER.decode(ids) == answer


def test_yes_and_no_differ_in_their_first_token() -> None:
    answers = ["yes", "Yes", "YES", "no", "No", "NO", "True", "False"]
    first = [TOKENIZER(answer, add_special_tokens=False)["input_ids"][0] for answer in answers]
    assert len(set(first)) == len(answers)


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<" not in text and "▁" not in text))
def test_any_text_survives(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < VOCAB_SIZE for token in ids)


def test_processor() -> None:
    assert tiny_processor().image_processor.num_crops == 16
    assert tiny_processor(num_crops=1).image_processor.num_crops == 1
