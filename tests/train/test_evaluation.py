"""Generation, scores, loss and the evaluation of a model that is being trained, on a small real model."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_sets import colour_directory
from run_dirs import arguments, command, read_lines, settings_for, without_times

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_train.config import EvalConfig, MethodConfig, OptimConfig
from phi3v_train.data.encode import EncodedPrompt, EncodedSample, Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.evaluation.choose_metrics import find_metric
from phi3v_train.evaluation.during import RunEvaluation
from phi3v_train.evaluation.evaluate import Evaluator
from phi3v_train.evaluation.generate import Generator, undisturbed, word_ids
from phi3v_train.evaluation.predictions import PredictionFolder
from phi3v_train.evaluation.prompts import make_batches
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor, tiny_tokenizer
from phi3v_train.models.renderer import NO_LABEL
from phi3v_train.precision import Precision
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.single import SingleEngine

CPU = torch.device("cpu")
SINGLE = SingleProcess(CPU)
FP32 = Precision("fp32", "cpu")
ROWS = 7
RENDERER = PHI3V.renderer(tiny_processor(1))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=4, held_out=ROWS)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=1)


def image_tensors(encoded: EncodedPrompt | EncodedSample) -> dict[str, torch.Tensor]:
    """The image inputs of one prompt or sample, put together by hand; empty if it has no image."""
    if not encoded.images:
        return {}
    flat = np.concatenate([image["canvases"].reshape(-1) for image in encoded.images])
    sizes = [image["image_sizes"].tolist() for image in encoded.images]
    return {"canvases": torch.from_numpy(flat), "image_sizes": torch.tensor(sizes)}


def make_evaluator(data_dir: Path, split: str = "val", num_workers: int = 0, **changes: Any) -> Evaluator:
    config = EvalConfig.model_validate({"max_new_tokens": 6, **changes})
    source = open_source(data_dir, split, num_crops=1)
    return Evaluator(source, RENDERER, config, (find_metric("accuracy"),), num_workers)


def predict(evaluator: Evaluator, model: Any, path: Path) -> list[Any]:
    folder = PredictionFolder(path, {"test": 1})
    folder.begin()
    return evaluator.predict(model, folder, precision=FP32, group=SINGLE)


def without_scores(records: list[Any]) -> list[Any]:
    return [{name: value for name, value in record.items() if name != "scores"} for record in records]


def test_answers_do_not_depend_on_the_batch(data_dir, model, tmp_path):
    """Against plain generation of one prompt at a time through the processor's own tensors."""
    expected = []
    reader = Reader([open_source(data_dir, "val", num_crops=1)], Encoder(PHI3V.renderer(tiny_processor(1))))
    tokenizer = tiny_tokenizer()
    for row in range(ROWS):
        (prompt,) = reader.prompts(SampleRef(0, row, 0))
        ids = torch.from_numpy(prompt.input_ids)[None]
        output = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, **image_tensors(prompt))
        expected.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
    reference: list[Any] = []
    for batch_size, workers in ((1, 0), (3, 2), (100, 0)):
        out = tmp_path / f"{batch_size}-{workers}"
        records = predict(make_evaluator(data_dir, num_workers=workers, eval_batch_size=batch_size), model, out)
        assert [record["prediction"] for record in records] == expected
        assert [record["id"] for record in records] == [f"val-{row:010d}" for row in range(ROWS)]
        assert read_lines(out / "predictions.jsonl") == records
        reference = reference or records
        assert without_scores(records) == without_scores(reference)
        for record, other in zip(records, reference, strict=True):
            assert record["scores"] == pytest.approx(other["scores"], rel=1e-4)


def test_p_yes_is_that_of_the_first_answer_token(data_dir, model, tmp_path):
    records = predict(make_evaluator(data_dir), model, tmp_path)
    evaluator = make_evaluator(data_dir)
    vocabulary = tiny_tokenizer().get_vocab()
    assert word_ids(tiny_tokenizer()) == {
        "yes": sorted([vocabulary["▁yes"], vocabulary["▁Yes"]]),
        "no": sorted([vocabulary["▁no"], vocabulary["▁No"]]),
    }
    for row in (1, 3, 5):
        (prompt,) = evaluator.reader.prompts(SampleRef(0, row, 0))
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        inputs.update(image_tensors(prompt))
        with torch.no_grad():
            shares = torch.softmax(model(**inputs).logits[0, -1].double(), -1)
        for word, spellings in {"yes": ("▁yes", "▁Yes"), "no": ("▁no", "▁No")}.items():
            expected = sum(shares[vocabulary[spelling]].item() for spelling in spellings)
            assert records[row]["scores"][word] == pytest.approx(expected, rel=1e-4)


class Vocabulary:
    """A tokenizer of another kind, as far as `word_ids` looks."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def get_vocab(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}


def test_spellings_of_yes_and_no():
    pieces = ("yes", "▁Yes", "YES", "Ġno", "No", "yesterday", "▁NO", "not")
    assert word_ids(Vocabulary(*pieces)) == {"yes": [0, 1, 2], "no": [3, 4, 6]}
    assert word_ids(Vocabulary("▁Yes")) == {"yes": [1 - 1], "no": []}


@pytest.mark.parametrize(("turns", "expected"), [("last", [0, 1]), ("first", [0, 0]), ("all", [0, 0, 1])])
def test_which_turns_are_generated(data_dir, model, tmp_path, turns, expected):
    evaluator = make_evaluator(data_dir, eval_turns=turns, eval_batch_size=3)
    records = [r for r in predict(evaluator, model, tmp_path) if r["id"] in ("val-0000000001", "val-0000000002")]
    assert [record["turn"] for record in records] == expected
    answers = {(record["id"][-1], record["turn"]): record["answers"] for record in records}
    assert answers["1", 0] == ["green", "it is green", "GREEN"], "the row's accepted answers"
    if turns != "first":
        assert answers["2", 1] == ["blue 2"], "the stored answer stands in"
    if turns != "last":
        assert answers["2", 0] == ["blue"]


def test_like_lengths_stand_together_and_the_longest_come_first(data_dir):
    evaluator = make_evaluator(data_dir, eval_batch_size=2)
    lengths = [spec.num_tokens for spec in evaluator.specs]
    batches = make_batches(evaluator.specs, 2)
    assert [lengths[p] for batch in batches for p in batch] == sorted(lengths, reverse=True)
    assert sorted(p for batch in batches for p in batch) == list(range(ROWS))
    for spec in evaluator.specs:
        (prompt,) = evaluator.reader.prompts(SampleRef(0, spec.row, 0))
        assert (spec.num_tokens, spec.turn, spec.answers) == (len(prompt.input_ids), prompt.turn, prompt.answers)


class StoppedError(Exception):
    pass


def test_stopped_evaluations_end_with_the_same_bytes(data_dir, model, tmp_path, monkeypatch):
    whole = predict(make_evaluator(data_dir, eval_batch_size=2), model, tmp_path / "whole")
    generate = Generator.__call__
    calls = []

    def stopping(self: Generator, prompts: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 4:
            raise StoppedError
        return generate(self, prompts)

    monkeypatch.setattr(Generator, "__call__", stopping)
    with pytest.raises(StoppedError):
        predict(make_evaluator(data_dir, eval_batch_size=2), model, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".predictions-0.jsonl", "evaluation.json"]
    assert predict(make_evaluator(data_dir, eval_batch_size=2), model, tmp_path / "out") == whole
    assert calls == [2, 2, 2, 1, 1], "three batches are not made again"
    names = ("predictions.jsonl", "evaluation.json")
    assert all((tmp_path / "out" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    assert predict(make_evaluator(data_dir), None, tmp_path / "out") == whole, "complete: no model is needed"


def test_a_run_may_resume_with_another_batch_size(data_dir, model, tmp_path):
    whole = predict(make_evaluator(data_dir), model, tmp_path / "whole")
    folder = PredictionFolder(tmp_path / "out", {"test": 1})
    folder.begin()
    folder.open_part()
    folder.add([(6, whole[6]), (0, whole[0])])
    folder.close_part()
    records = predict(make_evaluator(data_dir, eval_batch_size=3), model, tmp_path / "out")
    assert without_scores(records) == without_scores(whole)


def test_the_loss_is_over_tokens_whatever_the_batch(data_dir, model):
    evaluator = make_evaluator(data_dir)
    total, count = 0.0, 0
    for row in range(ROWS):
        sample = evaluator.reader.encode(SampleRef(0, row, 0))
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(sample.input_ids)[None]}
        inputs.update(image_tensors(sample))
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1].double()
        labels = torch.from_numpy(sample.labels)[1:]
        kept = labels != NO_LABEL
        total -= torch.log_softmax(logits[kept], -1).gather(1, labels[kept][:, None]).sum().item()
        count += int(kept.sum())
    for batch_size in (3, 100):
        other = make_evaluator(data_dir, eval_batch_size=batch_size)
        assert other.loss(model, precision=FP32, group=SINGLE) == pytest.approx(total / count, rel=1e-5)


def test_modes_and_generators_are_as_before():
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    expected = torch.rand(3), np.random.rand(3), random.random()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert len(torch.rand(7)) == len(np.random.rand(7))
        assert random.random() < 1
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]


def unlabelled(directory: Path, answers: tuple[str, ...] = ("", "")) -> Path:
    directory.mkdir(exist_ok=True)
    rows = [
        Sample(id=f"test-{n}", source="s", conversations=(Turn(user=f"What is {n}?", assistant=answer),))
        for n, answer in enumerate(answers)
    ]
    text = "".join(row.to_json() + "\n" for row in rows)
    (directory / "set_test.jsonl").write_text(text, encoding="utf-8")
    return directory


def test_rows_without_answers_are_predicted_and_not_scored(model, tmp_path):
    evaluator = make_evaluator(unlabelled(tmp_path / "d"), "test")
    records = predict(evaluator, model, tmp_path / "out")
    assert [record["answers"] for record in records] == [[], []]
    assert all(record["prediction"] for record in records)
    with pytest.raises(UserError, match=r"set_test\.jsonl:1: 2 of 2 answers of split 'test' are empty"):
        evaluator.check()
    some = make_evaluator(unlabelled(tmp_path / "d", ("a", "")), "test")
    with pytest.raises(UserError, match=r"set_test\.jsonl:2: 1 of 2 answers"):
        some.check()


def test_what_a_metric_needs_is_looked_for_before_a_model_is_loaded(tmp_path):
    evaluator = make_evaluator(unlabelled(tmp_path / "d", ("yes", "yes")), "test")
    for name, words in (("consistency", r"no meta\.sentence_id"), ("auroc", "")):
        asked = Evaluator(evaluator.source, evaluator.renderer, evaluator.config, (find_metric(name),))
        if words:
            with pytest.raises(UserError, match=words):
                asked.check()
        else:
            asked.check()  # one class only is said with the result


RUN = {
    "eval_before": True,
    "eval_after": True,
    "eval_steps": 1,
    "eval_limit": 3,
    "max_new_tokens": 4,
    "use_lora": True,
    "lora_rank": 4,
    "lora_dropout": 0.2,
    "answer_choice": "random",
    "num_train_epochs": 2,
}


@pytest.mark.slow
def test_a_run_with_evaluations_trains_to_the_same_bits(data_dir, tmp_path):
    plain = {**RUN, "eval_before": False, "eval_after": False}
    del plain["eval_steps"]
    for name, changes in (("with", RUN), ("without", plain)):
        done = command("run", *arguments(settings_for(data_dir, tmp_path / name, **changes)), "--quiet")
        assert done.returncode == 0, done.stderr
    weights = "model/adapter_model.safetensors"
    assert (tmp_path / "with" / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()
    lines = without_times(read_lines(tmp_path / "with" / "metrics.jsonl"))
    bare = [{k: v for k, v in line.items() if not k.startswith("eval_")} for line in lines]
    assert bare[1:] == without_times(read_lines(tmp_path / "without" / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all({"eval_accuracy", "eval_loss"} <= line.keys() for line in lines)
    after = json.loads((tmp_path / "with" / "eval_after.json").read_text())
    assert list(after) == ["split", "num_samples", "metrics", "model", "step"]
    assert (after["split"], after["num_samples"], after["model"], after["step"]) == ("val", 3, "tiny", 2)
    records = read_lines(tmp_path / "with" / "predictions" / "step-000002" / "predictions.jsonl")
    assert len(records) == 3


def test_an_evaluation_inside_a_run_resumes_only_with_the_same_weights(data_dir, tmp_path, monkeypatch):
    calls = []
    generate = Generator.__call__

    def counting(self: Generator, prompts: Any) -> Any:
        calls.append(len(prompts))
        return generate(self, prompts)

    monkeypatch.setattr(Generator, "__call__", counting)
    model = tiny_model()

    trained = apply_method(model, MethodConfig(), FP32, seed=0, device=CPU)
    engine = SingleEngine(SINGLE, trained, FP32, OptimConfig())
    evaluation = RunEvaluation(make_evaluator(data_dir, eval_batch_size=2, eval_limit=3), tmp_path, model_name="tiny")
    first = evaluation(engine, 0)
    assert (calls, list(first["metrics"])) == ([2, 1], ["accuracy", "loss"])
    assert evaluation(engine, 0) == first
    assert calls == [2, 1]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    evaluation(engine, 0)
    assert calls == [2, 1, 2, 1]


class Scripted(torch.nn.Module):
    """Replaces a model: every row gets the same pieces, one per step."""

    def __init__(self, pieces: list[int], stop: list[int]) -> None:
        super().__init__()
        self.model = tiny_model(seed=1)
        self.model.generation_config.eos_token_id = stop
        self.pieces = pieces
        self.generation_config = self.model.generation_config
        self.config = self.model.config
        head, self.step = self.model.lm_head, 0

        def force(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(output, -10.0)
            forced[..., self.pieces[min(self.step, len(self.pieces) - 1)]] = 10.0
            self.step += 1
            return forced

        head.register_forward_hook(force)

    def generate(self, **inputs: Any) -> torch.Tensor:
        self.step = 0
        result: torch.Tensor = self.model.generate(**inputs)
        return result


@pytest.mark.parametrize("position", [0, 1, 2])
def test_any_of_the_stop_ids_ends_an_answer(data_dir, position):
    """The third as well as the first; and at the first token already, where the answer is empty."""
    vocabulary = tiny_tokenizer().get_vocab()
    stop = [vocabulary[name] for name in ("<|endoftext|>", "<|end|>", "<|user|>")]
    yes, no = vocabulary["▁yes"], vocabulary["▁no"]
    prompts = make_evaluator(data_dir).reader.prompts(SampleRef(0, 3, 0))
    ends = [yes, stop[position], no, no]
    (answer,) = Generator(Scripted(ends, stop), RENDERER, max_new_tokens=4)(prompts)
    assert answer.text == "yes"
    (answer,) = Generator(Scripted([stop[position], yes], stop), RENDERER, max_new_tokens=4)(prompts)
    assert answer.text == ""
    (answer,) = Generator(Scripted([yes, no], stop), RENDERER, max_new_tokens=3)(prompts)
    assert answer.text.split() == ["yes", "no", "no"]
