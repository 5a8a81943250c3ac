"""Settings that a model directory carries: which are used, and that every difference is printed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from colour_sets import colour_directory
from run_dirs import arguments, read_lines, settings_for
from transformers import AutoProcessor

from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.errors import UserError
from phi3v_train.cli.app import COMMANDS, HELP
from phi3v_train.data.model_settings import check_end_of_turn, model_notes
from phi3v_train.models.loading import load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.phi3v.tiny import save_tiny

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--device", "cpu", "--num_workers", "0", "--max_new_tokens", "3")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `phi3v-train` in this process; exit code, stdout and stderr."""

    def run_here(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_program(make_group("phi3v-train", HELP, COMMANDS), [str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run_here


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("data") / "colours", rows=4)


def suggest(data_dir: Path, directory: Path, num_crops: int) -> Path:
    """The same rows with a dataset.json that suggests a tile budget."""
    shutil.copytree(data_dir, directory)
    splits = {
        name: {"rows": rows, "images": 3, "files": {f"colours_{name}.jsonl": ""}, "labelled": True}
        for name, rows in (("train", 4), ("val", 3))
    }
    manifest = {"format": 1, "name": "colours", "task": "vqa", "metrics": ["accuracy"], "splits": splits}
    (directory / "dataset.json").write_text(json.dumps({**manifest, "num_crops": num_crops}))
    return directory


def train(call: Call, data_dir: Path, out: Path, *more: str, **changes: Any) -> str:
    """A run of two steps; its plan."""
    settings = settings_for(
        data_dir, out, **{"max_steps": 2, "batch_size": 2, "max_new_tokens": 3, "skip_validation": True, **changes}
    )
    for name in ("num_crops", "eval_after"):
        if name not in changes:
            del settings[name]
    code, _, errors = call("run", *arguments(settings), *more)
    assert code == 0, errors
    return errors


def evaluate(call: Call, data_dir: Path, model: object, out: Path, *more: object) -> tuple[Any, str]:
    """Scores with the loss, and stderr."""
    code, output, errors = call(
        *("eval", "--data_dir", data_dir, "--model_name_or_path", model, "--output_dir", out),
        *(*SMALL, "--loss", "--json", *more),
    )
    assert code == 0, errors
    return json.loads(output)["metrics"], errors


@pytest.fixture(scope="module")
def tuned(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with `--num_crops 1`, full weights."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    words = settings_for(data_dir, out, num_crops=1, max_steps=2, batch_size=2, max_new_tokens=3, skip_validation=True)
    del words["eval_after"]
    with pytest.raises(SystemExit) as stop:
        run_program(make_group("phi3v-train", HELP, COMMANDS), ["run", "--quiet", *arguments(words)])
    assert not stop.value.code
    return out


def test_a_tuned_model_scores_in_eval_what_it_scored_after_training(
    call: Call, data_dir: Path, tuned: Path, tmp_path: Path
) -> None:
    """Its tile budget of 1 goes before dataset.json's 9 and the default, and `AutoProcessor` takes it too."""
    after = json.loads((tuned / "eval_after.json").read_text())["metrics"]
    found, errors = evaluate(call, data_dir, tuned / "model", tmp_path / "bare")
    assert found == pytest.approx(after)
    assert "num_crops" not in errors
    complete = suggest(data_dir, tmp_path / "nine", 9)
    found, errors = evaluate(call, complete, tuned / "model", tmp_path / "complete")
    assert found == pytest.approx(after)
    assert f"note: num_crops is 1 for {complete} (model); dataset.json suggests 9\n" in errors
    assert AutoProcessor.from_pretrained(tuned / "model").image_processor.num_crops == 1


def test_an_option_wins_over_the_model_with_a_warning_that_quiet_does_not_hide(
    call: Call, data_dir: Path, tuned: Path, tmp_path: Path
) -> None:
    expected = f"for {data_dir} (option); the run that made {tuned / 'model'} used 1: --num_crops 1 does so again\n"
    _, errors = evaluate(call, data_dir, tuned / "model", tmp_path / "o", "--num_crops", 4, "--quiet")
    assert errors == f"warning: num_crops is 4 {expected}"
    (tmp_path / "eval.yaml").write_text("num_crops: 4\n")
    _, errors = evaluate(call, data_dir, tuned / "model", tmp_path / "p", "--config", tmp_path / "eval.yaml")
    assert f"warning: num_crops is 4 for {data_dir} (config eval.yaml); the run that made" in errors


def test_predict_and_inspect_take_the_models_tile_budget(
    call: Call, data_dir: Path, tuned: Path, tmp_path: Path
) -> None:
    model = ("--model_name_or_path", tuned / "model")
    code, out, _ = call("inspect", data_dir, *model, "--json")
    view = json.loads(out)
    assert (code, view["num_crops"], view["num_crops_from"]) == (0, 1, "model")
    assert view["images"][0]["num_tiles"] == 2, "the global view and one tile"
    complete = suggest(data_dir, tmp_path / "nine", 9)
    code, out, errors = call("inspect", complete, *model, "--json", "--num_crops", 2)
    assert json.loads(out)["num_crops"] == 2
    assert (
        f"(option); the run that made {tuned / 'model'} used 1: --num_crops 1 does so again, dataset.json suggests 9\n"
    ) in errors
    code, _, errors = call(
        "predict", "--data_dir", data_dir, "--eval_split", "val", *model, "--output_dir", tmp_path / "p", *SMALL
    )
    assert code == 0, errors
    assert json.loads((tmp_path / "p" / "evaluation.json").read_text())["data"]["num_crops"] == 1


def test_a_run_on_a_tuned_model_takes_the_models_value_before_that_of_dataset_json(
    call: Call, data_dir: Path, tuned: Path, tmp_path: Path
) -> None:
    model = str(tuned / "model")
    plan = train(call, data_dir, tmp_path / "a", "--dry_run", model_name_or_path=model)
    assert "4 rows, num_crops 1 (model)\n" in plan
    assert "setting  num_crops 1 (model)\n" in plan
    complete = suggest(data_dir, tmp_path / "nine", 9)
    plan = train(call, complete, tmp_path / "b", "--dry_run", model_name_or_path=model)
    assert "4 rows, num_crops 1 (model)\n" in plan
    assert f"note     num_crops is 1 for {complete} (model); dataset.json suggests 9\n" in plan
    plan = train(call, complete, tmp_path / "c", "--dry_run", model_name_or_path=model, num_crops=1)
    assert f"note     num_crops is 1 for {complete} (option); dataset.json suggests 9\n" in plan
    plan = train(call, complete, tmp_path / "d", "--dry_run", "--quiet", model_name_or_path=model, num_crops=9)
    assert plan.startswith(
        f"warning  num_crops is 9 for {complete} (option); the run that made {model} used 1: --num_crops 1 "
    )
    assert plan.count("\n") == 1


def released(folder: Path, **preprocessor: Any) -> Path:
    """A model directory as if published: with a tile budget that no run of phi3v wrote."""
    save_tiny(folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **preprocessor}))
    return folder


def test_a_released_models_own_budget_is_the_default(call: Call, data_dir: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "phi35", num_crops=4)
    plan = train(call, data_dir, tmp_path / "o", "--dry_run", model_name_or_path=str(model), skip_validation=False)
    assert "4 rows, num_crops 4 (processor)\n" in plan
    assert "setting  num_crops 4 (processor)\n" in plan
    assert "num_crops is" not in plan
    _, errors = evaluate(call, data_dir, model, tmp_path / "e", "--eval_limit", 1)
    assert "num_crops" not in errors
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["data"]["num_crops"] == 4
    code, out, errors = call("inspect", data_dir, "--model_name_or_path", model, "--json")
    view = json.loads(out)
    assert (code, view["num_crops"], view["num_crops_from"], errors) == (0, 4, "processor", "")


def test_option_and_dataset_json_override_a_released_models_own_budget(
    call: Call, data_dir: Path, tmp_path: Path
) -> None:
    model = released(tmp_path / "phi35", num_crops=4)
    plan = train(call, data_dir, tmp_path / "a", "--dry_run", model_name_or_path=str(model), num_crops=2)
    unused = f"preprocessor_config.json of {model} says 4, which is not used"
    assert f"note     num_crops is 2 for {data_dir} (option); {unused}\n" in plan
    complete = suggest(data_dir, tmp_path / "nine", 9)
    plan = train(call, complete, tmp_path / "b", "--dry_run", model_name_or_path=str(model))
    assert f"note     num_crops is 9 for {complete} (dataset.json); {unused}\n" in plan


def test_adapters_and_merged_models_carry_the_budget(call: Call, data_dir: Path, tmp_path: Path) -> None:
    base = released(tmp_path / "base", num_crops=4)
    out = tmp_path / "out"
    train(call, data_dir, out, model_name_or_path=str(base), num_crops=2, use_lora=True, lora_rank=2, eval_after=False)
    code, _, errors = call("merge", out / "model", tmp_path / "merged")
    assert code == 0, errors
    for model in (out / "model", out / "checkpoint-000002", tmp_path / "merged"):
        code, shown, errors = call("inspect", data_dir, "--model_name_or_path", model, "--json")
        view = json.loads(shown)
        assert (code, view["num_crops"], view["num_crops_from"], errors) == (0, 2, "model", ""), model


@pytest.mark.parametrize("value", [0, 99, "4", True])
def test_a_wrong_budget_in_a_model_is_one_sentence(call: Call, data_dir: Path, tmp_path: Path, value: Any) -> None:
    model = released(tmp_path / "m", tuned_num_crops=value)
    code, _, errors = call("inspect", data_dir, "--model_name_or_path", model)
    assert code == 2
    assert errors.startswith(f"error: {model}/preprocessor_config.json: tuned_num_crops is wrong: ")
    assert errors.count("\n") == 1
    code, _, errors = call("inspect", data_dir, "--model_name_or_path", released(tmp_path / "n", num_crops=value))
    assert code == 2
    assert errors.startswith(f"error: {tmp_path / 'n'}/preprocessor_config.json: num_crops is wrong: num_crops must be")


def test_every_other_setting_that_differs_is_printed(call: Call, data_dir: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "m")
    plain, errors = evaluate(call, data_dir, model, tmp_path / "plain", "--num_crops", 1)
    assert errors == (
        f"{data_dir} val: accuracy (default)\n"
        f"note: num_crops is 1 for {data_dir} (option); preprocessor_config.json of {model} says 16, "
        "which is not used\n"
    )
    config = json.loads((model / "config.json").read_text())
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16", "_attn_implementation": "flash_attention_2"}
    (model / "config.json").write_text(json.dumps(config))
    generation = json.loads((model / "generation_config.json").read_text())
    generation |= {"do_sample": True, "temperature": 0.7, "min_new_tokens": 3, "suppress_tokens": [1, 2, 3]}
    (model / "generation_config.json").write_text(json.dumps(generation))
    template = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 100}))
    changed, errors = evaluate(call, data_dir, model, tmp_path / "changed", "--num_crops", 1)
    assert changed == plain, "none of them is used"
    answers = [read_lines(tmp_path / name / "predictions.jsonl") for name in ("plain", "changed")]
    assert answers[0] == answers[1]
    for sentence in (
        "names the dtype bfloat16; the run computes in fp32 (exact, and as fast as bf16 on most CPUs)",
        "names the attention flash_attention_2; the run uses sdpa (no flash: it needs a GPU)",
        "has do_sample true, min_new_tokens 3, suppress_tokens [1, 2, 3], temperature 0.7; not used, as answers are",
        f"the chat template of {model} formats a conversation differently",
        "takes 100 tokens at most (model_max_length), and a sample has ",
    ):
        assert errors.count(sentence) == 1, (sentence, errors)


def test_a_template_without_end_is_not_used_and_said(call: Call, data_dir: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "m")
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    code, output, errors = call("inspect", data_dir, "--model_name_or_path", model)
    assert code == 0
    assert "<|assistant|>" in output
    sentence = f"the chat template of {model} fails (it needs over 2 s or 256 MB for one conversation); it is not used"
    assert errors.count(sentence) == 1, errors


def test_a_model_that_normalises_images_otherwise_is_refused(call: Call, data_dir: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "m", image_mean=[0.5, 0.5, 0.5])
    for words in (("inspect", data_dir), ("run", "--dry_run", "--skip_validation", "--data_dir", data_dir)):
        code, _, errors = call(*words, "--model_name_or_path", model)
        assert code == 2
        assert "image_mean [0.5, 0.5, 0.5], and only CLIP's" in errors


def test_a_tokenizer_without_the_token_that_ends_an_answer_is_refused() -> None:
    """Trained with it, a model would never stop."""
    files = locate("tiny")
    processor = load_processor(files)
    check_end_of_turn(files, processor)
    words = {word: number for word, number in processor.tokenizer.get_vocab().items() if word != "<|end|>"}
    without = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: words))
    with pytest.raises(UserError) as caught:
        check_end_of_turn(files, without)
    assert str(caught.value) == (
        "tiny: the tokenizer has no token '<|end|>', which ends an answer of the model family phi3v; copy "
        "tokenizer.json from the model's original files"
    )


def test_a_template_of_its_own_and_images_that_are_moved_are_said() -> None:
    files = locate("tiny:llava_onevision")
    processor = load_processor(files)
    notes = [note.text for note in model_notes(files, processor, [])]
    assert notes == ["tiny:llava_onevision: the images of a turn come before its text, wherever they are in the row"]
    processor.chat_template = processor.chat_template.replace("<|im_start|>", "# ")
    notes = [note.text for note in model_notes(files, processor, [])]
    assert notes[0] == (
        "tiny:llava_onevision: its chat template is not that of LLaVA-OneVision; conversations are written by it"
    )
