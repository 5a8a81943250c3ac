"""Settings: groups and flat names, short forms, layers and their origins, one sentence a mistake."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from colour_sets import colour_directory

from phi3v_data.cli.base import run
from phi3v_data.errors import NotFoundError, UserError
from phi3v_train.cli.app import ALIASES as COMMAND_ALIASES
from phi3v_train.cli.app import COMMANDS, HELP, make_group
from phi3v_train.config import RunConfig, home_groups
from phi3v_train.parse_config import parse_config
from phi3v_train.settings import resolve
from phi3v_train.training.folder import config_text

REFERENCE: dict[str, Any] = {
    "model_name_or_path": "microsoft/Phi-3.5-vision-instruct",
    "use_flash_attention": False,
    "bf16": False,
    "use_lora": False,
    "use_qlora": False,
    "freeze_vision_model": False,
    "output_dir": Path("output"),
    "batch_size": 16,
    "batch_size_per_gpu": 1,
    "num_train_epochs": 1,
    "learning_rate": 4e-5,
    "wd": 0.01,
    "lora_rank": 64,
    "lora_alpha_ratio": 2,
    "lora_dropout": 0,
    "no_tqdm": False,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-7,
    "optim": "adamw",
    "warmup_steps": 50,
    "lr_scheduler": "linear",
    "max_grad_norm": 1.0,
    "gradient_checkpointing": True,
    "lora_init": "gaussian",
}


def test_names_and_defaults_of_the_phi35_vision_sample() -> None:
    config = RunConfig()
    for name, value in REFERENCE.items():
        assert getattr(getattr(config, home_groups()[name]), name) == value, name


def test_flat_and_grouped_names_are_the_same() -> None:
    flat = parse_config({"learning_rate": 1e-5, "parallel": "ddp", "data_dir": ["a"], "eval_steps": 5})
    grouped = parse_config(
        {
            "optim": {"learning_rate": 1e-5},
            "parallel": {"parallel": "ddp"},
            "data": {"data_dir": ["a"]},
            "eval": {"eval_steps": 5},
        }
    )
    assert flat == grouped
    assert len(home_groups()) == sum(len(group.model_fields) for group in RunConfig.GROUPS.values())


def test_short_forms() -> None:
    config = parse_config({"bf16": True, "use_flash_attention": True, "use_qlora": True})
    assert (config.model.dtype, config.model.attn) == ("bf16", "flash")
    assert config.method.use_lora


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"num_crops": 0}, "--num_crops must be at least 1, not 0"),
        ({"lerning_rate": 1}, "'lerning_rate' is not a setting of a run; did you mean 'learning_rate'?"),
        ({"attn": "fast"}, "--attn must be 'auto', 'flash', 'sdpa' or 'eager', not 'fast'"),
        ({"parallel": "zero9"}, "--parallel must be 'auto', 'ddp', 'fsdp', 'zero2' or 'zero3', not 'zero9'"),
        ({"attn": "flash", "dtype": "fp16"}, "--attn flash cannot compute in fp16: use --dtype bf16, or --attn sdpa"),
        ({"use_flash_attention": True, "attn": "sdpa"}, "--use_flash_attention contradicts --attn sdpa"),
        ({"bf16": True, "dtype": "fp16"}, "--bf16 contradicts --dtype fp16"),
        ({"freeze_vision_model": True, "freeze_language_model": True}, "leave nothing to train"),
        ({"use_lora": True, "lora_init": "pissa_niter_16"}, "do not reload to the same model"),
        ({"use_lora": True, "lora_init": "loftq"}, "must be one of gaussian, default, pissa, olora"),
        ({"use_qlora": True, "lora_init": "pissa"}, "which --use_qlora keeps in 4 bits"),
        ({"use_dora": True}, "add --use_lora"),
        ({"data_dir": ["a"], "mix": [1, 2]}, "--mix has 2 weights for 1 --data_dir"),
        ({"data_dir": ["a"], "mix": [0]}, "greater than 0"),
        ({"truncate": "turns"}, "needs --max_length"),
        ({"learning_rate": "fast"}, "--learning_rate must be a number, not 'fast'"),
        ({"learning_rate": "nan"}, "--learning_rate must be a finite number, not 'nan'"),
        ({"optim": "adam"}, "--optim must be 'adamw', 'adamw_8bit' or 'paged_adamw_8bit', not 'adam'"),
        *(
            (
                {"optim": optim, "parallel": parallel},
                f"--optim {optim} cannot be used with --parallel {parallel}, which shards the moments among "
                "processes: use --parallel ddp, or --optim adamw",
            )
            for optim in ("adamw_8bit", "paged_adamw_8bit")
            for parallel in ("fsdp", "zero2", "zero3")
        ),
        ({"batch_size": 0}, "--batch_size must be at least 1, not 0"),
    ],
)
def test_each_mistake_is_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


ALIASES = {
    "lr": ("learning_rate", 3e-4),
    "weight_decay": ("wd", 0.5),
    "per_device_train_batch_size": ("batch_size_per_gpu", 4),
    "lora_r": ("lora_rank", 8),
    "epochs": ("num_train_epochs", 2.0),
    "output": ("output_dir", "elsewhere"),
    "max_seq_length": ("max_length", 4000),
    "lr_scheduler_type": ("lr_scheduler", "cosine"),
    "per_device_eval_batch_size": ("eval_batch_size", 3),
}
ADVICE = {
    "gradient_accumulation_steps": "give --batch_size, which is --batch_size_per_gpu x accumulation steps x processes",
    "lora_alpha": "give --lora_alpha_ratio, which is alpha / --lora_rank (alpha 128 with rank 64: 2)",
    "grad_accum": "give --batch_size, which is --batch_size_per_gpu x accumulation steps x processes",
    "dataset": "give --data_dir, a conversations directory: phi3v-data convert makes one",
    "fp16": "give --dtype fp16",
    "load_in_4bit": "give --use_qlora",
    "wandb": "give --report_to wandb",
    "warmup_ratio": "give --warmup_steps, which is the ratio x the number of steps that `phi3v-train plan` shows",
}


def typed(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr of `phi3v-train WORDS`."""
    with pytest.raises(SystemExit) as end:
        run(make_group("phi3v-train", HELP, COMMANDS, COMMAND_ALIASES), list(words))
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_names_of_other_trainers_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train` is `run`; an option with exactly our meaning is taken, also in kebab-case."""
    data_dir = str(colour_directory(tmp_path / "data", rows=4))
    plan = [
        *("train", "--data_dir", data_dir, "--model_name_or_path", "tiny", "--device", "cpu", "--num_crops", "1"),
        *("--use_lora", "--dry_run", "--json", "--skip_validation"),
    ]
    options = [word for name, (_, value) in ALIASES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code, out, err = typed(*plan, *options, capsys=capsys)
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert {own: settings[own] for own, _ in ALIASES.values()} == {
        own: {"value": value, "from": "option"} for own, value in ALIASES.values()
    }


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_other_names_are_taken_where_a_model_is_used(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = str(colour_directory(tmp_path / "data", rows=4))
    words = (
        command,
        "--data_dir",
        data_dir,
        "--eval_split",
        "val",
        "--model",
        str(tmp_path / "none"),
        "--out_dir",
        str(tmp_path / "out"),
    )
    code, _, err = typed(*words, capsys=capsys)
    assert code == 2
    assert err.startswith(f"error: --model_name_or_path {tmp_path / 'none'}: no such directory")


@pytest.mark.parametrize(
    ("option", "suggested"),
    [
        ("--learning_rte", ["--learning_rate"]),
        ("--max_step", ["--max_steps"]),
        ("--lora_rnak", ["--lora_rank"]),
        ("--gpus", []),
        ("--precision", []),  # not --recipe
        ("--template", []),
    ],
)
def test_only_an_option_that_is_much_alike_is_suggested(
    option: str, suggested: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed("run", option, "2", capsys=capsys)
    assert code == 2
    assert err.startswith(f"error: no option '{option}' of 'phi3v-train run'; ")
    assert re.findall(r"'(--[a-z_]+)'", err.partition(option)[2]) == suggested


@pytest.mark.parametrize("name", ADVICE)
def test_names_without_a_setting_of_the_same_value_are_answered(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed("run", "--data_dir", "x", f"--{name}", "2", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert ADVICE[name] in err
    for text in (f"{name}: 2", f"optim:\n  {name}: 2"):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            resolve({}, config_file=tmp_path / "run.yaml")
        assert f"run.yaml: '{name}' is not a setting of a run: " in str(caught.value)
        assert ADVICE[name] in str(caught.value)
    with pytest.raises(UserError, match=f"'{name}' is not a setting"):
        parse_config({name: 2})


def test_names_of_other_trainers_as_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    flat = "\n".join(f"{name}: {value}" for name, (_, value) in ALIASES.items())
    file.write_text(flat)
    settings = resolve({"learning_rate": 1e-3}, config_file=file)
    found = settings.config.flat()
    expected = dict(ALIASES.values()) | {"learning_rate": 1e-3}
    assert {own: found[own] for own in expected} == expected
    assert settings.origin("wd") == "config mine.yaml"
    file.write_text("optim: {lr: 0.01}\nmethod: {lora_r: 3}\n")
    assert resolve({"lr": 0.02}, config_file=file).config.optim.learning_rate == 0.02
    assert resolve({}, config_file=file).config.method.lora_rank == 3
    assert parse_config({"optim": {"lr": 0.03}, "epochs": 4}).optim.learning_rate == 0.03
    file.write_text("lr: 0.01\nlearning_rate: 0.02\n")
    with pytest.raises(UserError, match="learning_rate is given twice, as 'learning_rate' too, with different values"):
        resolve({}, config_file=file)


def test_option_beats_config_beats_recipe_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learning_rate: 3e-4\noptim: {batch_size: 8}\n")
    settings = resolve({"batch_size": "4"}, config_file=file, recipe="docvqa-lora-bf16")
    config = settings.config
    assert (config.optim.batch_size, settings.origin("batch_size")) == (4, "option")
    assert (config.optim.learning_rate, settings.origin("learning_rate")) == (3e-4, "config mine.yaml")
    assert (config.method.lora_rank, settings.origin("lora_rank")) == (32, "recipe docvqa-lora-bf16")
    assert settings.origin("wd") == "default"


def test_a_short_form_overrides_a_lower_layer() -> None:
    settings = resolve({"bf16": True}, recipe="docvqa-lora-fp16")
    assert (settings.config.model.dtype, settings.origin("dtype")) == ("bf16", "option")


@pytest.mark.parametrize(("option", "expected"), [(None, (4, "dataset.json")), (2, (2, "option"))])
def test_num_crops_is_filled_in_only_where_nothing_set_it(option: int | None, expected: Any) -> None:
    settings = resolve({} if option is None else {"num_crops": option}).with_num_crops(4, "dataset.json")
    assert (settings.config.model.num_crops, settings.origin("num_crops")) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rate: [1", ":1: not YAML"),
        ("- a\n", "expected `name: value` lines, found a list"),
        ("lerning_rate: 1", "did you mean 'learning_rate'?"),
        ("optim:\n  batch: 1", "run.yaml: 'batch' is not a setting of a run"),
        ("eval: tiny", "run.yaml: eval: must be a group of `name: value` lines, not 'tiny'"),
        ("batch_size: 4\nseed: 1\nbatch_size: 8\n", "run.yaml:3: 'batch_size' is there twice; keep one"),
        ("optim:\n  seed: 1\n  batch_size: 4\n  seed: 2\n", "run.yaml:4: 'seed' is there twice; keep one"),
        ("optim:\n  batch_size: 4\nbatch_size: 8\n", "run.yaml: 'batch_size' is there twice, in two groups"),
        ("recipe: docvqa-lora", "there is no recipe of that name"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve({}, config_file=tmp_path / "run.yaml")
    assert sentence in str(caught.value)


def test_all_mistakes_are_named_with_their_file_and_key_or_option(tmp_path: Path) -> None:
    file = tmp_path / "c2.yaml"
    file.write_text("learning_rate: fast\n")
    with pytest.raises(UserError) as caught:
        resolve({}, config_file=file)
    assert str(caught.value) == (f"{file}: learning_rate must be a number, not 'fast'")
    file.write_text("optim:\n  learning_rate: fast\n  batch: 4\n  lora_alpha: 8\nnum_crops: 99\nseed: -1\n")
    with pytest.raises(UserError) as caught:
        resolve({"num_crops": "0", "seed": "1", "batch_size": "0"}, config_file=file)
    assert sorted(str(caught.value).replace(f"{file}", "c2.yaml").split("; ")) == [
        "--batch_size must be at least 1, not '0'",
        "--num_crops must be at least 1, not '0'",
        "c2.yaml: 'batch' is not a setting of a run",
        "c2.yaml: 'lora_alpha' is not a setting of a run: give --lora_alpha_ratio, which is alpha / --lora_rank "
        "(alpha 128 with rank 64: 2)",
        "c2.yaml: learning_rate must be a number, not 'fast'",
        "did you mean 'batch_size'?",
    ]


def test_an_option_s_recipe_wins_over_the_file_s(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("recipe: docvqa-lora-fp16\n")
    assert resolve({}, config_file=tmp_path / "run.yaml").config.model.dtype == "fp16"
    settings = resolve({}, config_file=tmp_path / "run.yaml", recipe="docvqa-lora-bf16")
    assert (settings.config.model.dtype, settings.recipe) == ("bf16", "docvqa-lora-bf16")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_missing_data_are_reported_before_anything_else(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--model_name_or_path", "nobody/nothing"], ["--nnodes", "2"]):
        code, out, err = typed(command, *words, capsys=capsys)
        assert (code, out) == (2, "")
        assert err == "error: no data: give --data_dir, a conversations directory; it may be given several times\n"


def test_help_shows_a_list_as_it_is_typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = typed("run", "--help", capsys=capsys)
    text = " ".join(out.split())
    assert (code, "[default: tensorboard]" in text, "('" in text) == (0, True, False)
    assert "Other trainers' names are taken too: --lr, --weight_decay" in text


def test_a_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the file does not exist"):
        resolve({}, config_file=tmp_path / "none.yaml")


def test_the_saved_config_is_the_config(tmp_path: Path) -> None:
    settings = resolve(
        {"data_dir": ["a b", "ü: #1"], "mix": [1, 2.5], "use_qlora": True, "bf16": True, "max_length": 900}
    ).with_num_crops(4, "dataset.json")
    text = config_text(settings)
    (tmp_path / "config.yaml").write_text(text)
    again = resolve({}, config_file=tmp_path / "config.yaml")
    assert again.config == settings.config
    assert "num_crops: 4  # dataset.json" in text
    assert "wd: 0.01  # default" in text
    assert set(yaml.safe_load(text)) == set(RunConfig.GROUPS)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("report_to", "none", ("none",)),
        ("metric", "anls", ("anls",)),
        ("metric", "mine.py:score", ("mine.py:score",)),
        ("data_dir", "rows", (Path("rows"),)),
        ("data_dir", Path("rows"), (Path("rows"),)),
    ],
)
def test_one_value_of_a_setting_that_takes_several_needs_no_list(
    tmp_path: Path, name: str, value: Any, kept: tuple[Any, ...]
) -> None:
    file = tmp_path / "config.yaml"
    group = RunConfig.GROUPS[home_groups()[name]]
    file.write_text(yaml.safe_dump({name: str(value)}))
    grouped = tmp_path / "grouped.yaml"
    grouped.write_text(yaml.safe_dump({home_groups()[name]: {name: str(value)}}))
    found = [
        resolve({name: value}).config.flat()[name],
        resolve({}, config_file=file).config.flat()[name],
        resolve({}, config_file=grouped).config.flat()[name],
    ]
    assert found == [[str(each) for each in kept]] * 3
    assert getattr(group.model_validate({name: value}), name) == kept
    assert resolve({"data_dir": ["a"], "mix": 2}).config.data.mix == (2.0,)
    with pytest.raises(UserError, match="--report_to must be 'tensorboard', 'wandb', 'trackio' or 'none', not 'x'"):
        resolve({"report_to": "x"})


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--lr", "1e-3", "--learning_rate", "1e-4"), "--lr and --learning_rate"),
        (("--learning-rate=1e-3", "--lr=1e-3"), "--learning_rate and --lr"),
    ],
)
def test_two_names_of_one_option_are_refused(
    words: tuple[str, ...], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed("run", "--data_dir", "x", *words, capsys=capsys)
    assert (code, err) == (2, f"error: {names} are two names of one option: give one of them\n")


def test_other_names_are_known_inside_a_group_too() -> None:
    config = RunConfig.model_validate({"optim": {"lr": 0.002}, "method": {"lora_r": 3}})
    assert (config.optim.learning_rate, config.method.lora_rank) == (0.002, 3)
