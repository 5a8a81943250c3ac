"""Answers in batches: the same as one by one and as evaluation generates them; sampling, stop strings, cancelling."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from served import BLUE, RED, question, small_answerer

from phi3v_data.errors import UserError
from phi3v_train.data.encode import EncodedPrompt
from phi3v_train.evaluation.generate import Generator
from phi3v_train.models.phi3v.tiny import save_tiny, tiny_model
from phi3v_train.models.registry import built_in
from phi3v_train.serving.answerer import NOWHERE, Answerer, Row, certain, first_stop
from phi3v_train.serving.request import Piece, QueueFullError, Request, Sampling, ShuttingDownError

QUESTIONS = [
    question("What colour is it?", RED),
    question("Hello there, what do you think of the weather today?"),
    question("Which of the two is red?", RED, BLUE),
    question("And this?", BLUE),
]
TWELVE = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def answerer() -> Any:
    made = small_answerer(max_batch=4)
    yield made
    made.close()


def ask(answerer: Answerer, asked: Any, sampling: Sampling = TWELVE) -> Any:
    return answerer.submit(answerer.encode(*asked), sampling)


def text_of(request: Any) -> str:
    return "".join(piece.text for piece in request)


QUICK = ("phi3v", "qwen3_vl", "gemma3", "idefics3", "llava_next")
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in built_in() if name != "other"]


@pytest.mark.parametrize("family", ALL)
def test_greedy_answers_do_not_depend_on_the_batch(family: str) -> None:
    """Alone, four together, and as `eval` generates them."""
    answerer = small_answerer("tiny" if family == "phi3v" else f"tiny:{family}", max_batch=4)
    alone = [text_of(ask(answerer, asked)) for asked in QUESTIONS]
    blocker = ask(answerer, QUESTIONS[0])
    together = [ask(answerer, asked) for asked in QUESTIONS]  # wait until the first is answered, then go together
    assert [text_of(request) for request in together] == alone
    assert text_of(blocker) == alone[0]
    answerer.close()
    generator = Generator(answerer.model, answerer.encoder.renderer, max_new_tokens=12)
    assert [answer.text for answer in generator([answerer.encode(*asked) for asked in QUESTIONS])] == alone
    assert len(set(alone)) > 1


def test_an_adapter_answers_as_its_model_does(tmp_path: Path) -> None:
    """By its directory; on top of the base that it names."""
    wrapped = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules=["qkv_proj", "o_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "tiny"}))
    answerer, base = small_answerer(str(tmp_path)), small_answerer()
    text = text_of(ask(answerer, QUESTIONS[0]))
    generate = Generator(wrapped.eval().base_model.model, answerer.encoder.renderer, max_new_tokens=12)
    assert [answer.text for answer in generate([answerer.encode(*QUESTIONS[0])])] == [text]
    assert text != text_of(ask(base, QUESTIONS[0]))
    answerer.close()
    base.close()


def test_weights_that_are_written_over_change_no_answer(answerer: Answerer, tmp_path: Path) -> None:
    """As by a copy into the directory that is served; safetensors maps the file."""
    save_tiny(tmp_path)
    own = small_answerer(str(tmp_path))
    weights = tmp_path / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\0" * (weights.stat().st_size // 4))
    assert text_of(ask(own, QUESTIONS[1])) == text_of(ask(answerer, QUESTIONS[1]))
    own.close()


def test_a_streamed_answer_is_the_whole_one_in_pieces(answerer: Answerer) -> None:
    pieces = list(ask(answerer, QUESTIONS[1]))
    assert len(pieces) > 3
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish, pieces[-1].num_tokens) == ("length", 12)


def test_a_seed_gives_the_same_answer_in_any_batch(answerer: Answerer) -> None:
    drawn = Sampling(max_new_tokens=8, temperature=1.0, seed=5)
    alone = text_of(ask(answerer, QUESTIONS[1], drawn))
    blocker = ask(answerer, QUESTIONS[0])
    together = [ask(answerer, QUESTIONS[0]), ask(answerer, QUESTIONS[1], drawn), ask(answerer, QUESTIONS[1], drawn)]
    assert [text_of(request) for request in together[1:]] == [alone, alone]
    text_of(blocker)
    seeds = [Sampling(max_new_tokens=8, temperature=1.0, seed=seed) for seed in range(6)]
    assert len({text_of(ask(answerer, QUESTIONS[1], sampling)) for sampling in seeds}) == 6


def test_a_small_top_p_is_the_most_likely_token(answerer: Answerer) -> None:
    narrow = Sampling(max_new_tokens=12, temperature=1.0, top_p=1e-9, seed=1)
    assert text_of(ask(answerer, QUESTIONS[1], narrow)) == text_of(ask(answerer, QUESTIONS[1]))


def test_a_temperature_near_zero_is_the_most_likely_token(answerer: Answerer) -> None:
    """Logits over it are infinite, which failed the whole batch."""
    cold = Sampling(max_new_tokens=12, temperature=5e-324, seed=1)
    assert text_of(ask(answerer, QUESTIONS[1], cold)) == text_of(ask(answerer, QUESTIONS[1]))


def test_an_answer_ends_before_a_stop_string(answerer: Answerer) -> None:
    whole = text_of(ask(answerer, QUESTIONS[1]))
    string = whole[9:14]
    pieces = list(ask(answerer, QUESTIONS[1], Sampling(max_new_tokens=12, stop=("never there", string))))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(string)].rstrip()
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize(("text", "stop", "expected"), [
    ("Hello wor", (), "Hello wor"),
    ("Hello ", (), "Hello"),
    ("caf\ufffd", (), "caf"),
    ("The end is EN", ("END",), "The end is"),
    ("a\n", ("\n\n",), "a"),
    ("abab", ("abc",), "ab"),
])  # fmt: skip
def test_what_may_still_change_is_kept_back(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert certain(text, stop) == expected


def test_the_first_stop_string_counts() -> None:
    assert first_stop("one two three", ("three", "two")) == 4
    assert first_stop("one", ("two",)) is None


def test_an_answer_ends_with_the_positions_of_the_model(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that leaves no room for one is refused, in place of an answer from positions that it never saw."""
    assert answerer.context == 131_072  # of config.json
    length = len(answerer.encode(*QUESTIONS[1]).input_ids)
    monkeypatch.setattr(answerer, "context", length + 3)
    last = list(ask(answerer, QUESTIONS[1]))[-1]
    assert (last.finish, last.num_tokens) == ("length", 3)
    monkeypatch.setattr(answerer, "context", length)
    with pytest.raises(UserError, match=f"^the conversation has {length} tokens, images included, and the model takes"):
        ask(answerer, QUESTIONS[1])


def test_nothing_is_lost_behind_bytes_that_are_no_text() -> None:
    """A tokenizer of bytes shows all of a run differently when its end is damaged."""
    texts = ["\u00e9", "\u00e9\ufffd", "\ufffd\ufffd\ufffdb"]
    tokenizer = SimpleNamespace(decode=lambda ids, **_: texts[len(ids) - 1])
    request = Request(EncodedPrompt(np.arange(2), (), 0, (), NOWHERE), Sampling(3))
    row = Row(request, tokenizer, frozenset())
    for token in (1, 2, 3):
        row.take(token)
    assert text_of(request) == "\u00e9\ufffd\ufffdb"


def test_a_cancelled_request_ends_and_the_others_are_answered(answerer: Answerer) -> None:
    expected = text_of(ask(answerer, QUESTIONS[1]))
    blocker = ask(answerer, QUESTIONS[0])
    gone = ask(answerer, QUESTIONS[1], Sampling(max_new_tokens=4000))
    stays = ask(answerer, QUESTIONS[1])
    next(iter(gone))
    gone.cancel()
    assert text_of(stays) == expected
    assert list(gone)[-1].finish == "stop"  # long before 4,000 tokens, or this test would not end
    text_of(blocker)


def test_a_request_that_is_cancelled_in_the_queue_is_not_answered(answerer: Answerer) -> None:
    blocker = ask(answerer, QUESTIONS[0])
    next(iter(blocker))  # it runs
    waits = ask(answerer, QUESTIONS[1])
    waits.cancel()
    assert list(waits) == [Piece("", "stop")]
    assert answerer.num_waiting == 0
    text_of(blocker)


def test_too_many_requests_are_refused_and_a_closed_answerer_takes_none() -> None:
    answerer = small_answerer(max_batch=1, max_waiting=2)
    long = Sampling(max_new_tokens=60)
    first = ask(answerer, QUESTIONS[0], long)
    next(iter(first))  # it runs, so that none of the others does
    waiting = [ask(answerer, QUESTIONS[1]) for _ in range(2)]
    with pytest.raises(QueueFullError):
        ask(answerer, QUESTIONS[1])
    waiting[0].cancel()  # which leaves its place to another
    waiting[0] = ask(answerer, QUESTIONS[1])
    answerer.close()
    assert all(list(request)[-1].finish == "length" for request in waiting)  # what was taken is answered
    with pytest.raises(ShuttingDownError):
        ask(answerer, QUESTIONS[1])


def test_an_error_of_the_model_reaches_its_requests_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = small_answerer()
    expected = text_of(ask(answerer, QUESTIONS[0]))

    def fail(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(answerer.model, "generate", fail)
        with pytest.raises(Exception, match="ran out of memory on a prompt of 332 tokens"):
            text_of(ask(answerer, QUESTIONS[0]))
    assert text_of(ask(answerer, QUESTIONS[0])) == expected
    answerer.close()


def test_a_batch_that_runs_out_of_memory_is_answered_one_by_one_unless_answers_had_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answerer = small_answerer()
    real = answerer.model.generate
    expected = [text_of(ask(answerer, QUESTIONS[number])) for number in (1, 0)]
    begins = 0

    def scarce(**inputs: Any) -> None:
        if len(inputs["input_ids"]) > 1:
            if begins:
                inputs["generation_config"].max_new_tokens = begins
                real(**inputs)
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(**inputs)

    def asked_together() -> list[Any]:
        blocker = ask(answerer, QUESTIONS[0])
        next(iter(blocker))  # it runs, and the others wait for its end
        return [ask(answerer, QUESTIONS[number]) for number in (1, 0)]

    monkeypatch.setattr(answerer.model, "generate", scarce)
    assert [text_of(request) for request in asked_together()] == expected
    begins = 4
    for request, whole in zip(asked_together(), expected, strict=True):
        said: list[str] = []
        with pytest.raises(UserError, match="ran out of memory"):
            said.extend(piece.text for piece in request)
        assert whole.startswith("".join(said))
        assert said
    answerer.close()
