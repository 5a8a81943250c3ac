"""Model cards: `README.md` of a run, and of a model directory that `merge` wrote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phi3v_data.dataset import read_manifest
from phi3v_data.errors import UserError
from phi3v_data.files import read_regular
from phi3v_data.licences import licence_entries
from phi3v_data.markdown import markdown_code, markdown_text
from phi3v_data.schema import Manifest
from phi3v_data.shards.view import data_directory
from phi3v_train.config import RunConfig
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.locate import is_hub_id
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import open_checkpoint
from phi3v_train.training.folder import CARD, CONFIG, DONE, MODEL

MADE_BY = "made by `phi3v-train "
"""In the first sentence of every card written here."""
TUNED_ON = " tuned on "
DATA_HEAD = ("| set | source | licence |", "| --- | --- | --- |")
BASE_KEY, LOCAL_KEY = "base_model", "base_name"
LICENCE_KEYS = ("license", "license_name", "license_link")
CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Origin:
    """The base of a model, the name of its data, entries about licences for a card's header, and one row per set."""

    base: str
    task: str = ""
    licences: Mapping[str, Any] | None = None
    sets: tuple[str, ...] = ()


def find_origin(files: ModelFiles) -> Origin:
    """The origin of a model, an adapter or a checkpoint: by a card in its directory, or by the run that wrote it.

    Of a finished run that is its card, else its settings and the sets that they name, as far as they are still there.
    """
    directory = files.adapter or files.directory
    name = files.base_name
    if directory is None:
        return Origin(name)
    run = directory.absolute().parent
    of_run = directory.absolute().name == MODEL or open_checkpoint(directory) is not None
    cards = [directory / CARD, *([run / CARD] if of_run and (run / DONE).is_file() else [])]
    for path in cards:
        if (origin := read_card(path, name)) is not None:
            return origin
    return (read_settings(run / CONFIG) if of_run else None) or Origin(name)


def read_card(path: Path, base: str) -> Origin | None:
    """The origin that a card names, `base` if its header names none; None if it is not a card."""
    try:
        text = read_regular(path, CARD_BYTES).decode("utf-8")
        header = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    licences = {key: header[key] for key in LICENCE_KEYS if is_names(header.get(key))}
    if MADE_BY not in text:
        return Origin(base, licences=licences)  # of a base: the model that it was made from is not this one's base
    named, lines = header.get(BASE_KEY, header.get(LOCAL_KEY)), text.splitlines()
    title = next((line for line in lines if line.startswith("# ")), "")
    after = lines[lines.index(DATA_HEAD[0]) + len(DATA_HEAD) :] if DATA_HEAD[0] in lines else []
    sets = after[: next((number for number, line in enumerate(after) if not line.startswith("|")), len(after))]
    task = title.partition(TUNED_ON)[2]
    return Origin(named if isinstance(named, str) else base, task, licences, tuple(sets))


def is_names(value: Any) -> bool:
    """Whether an entry of a header is a text, or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def read_settings(path: Path) -> Origin | None:
    """The origin that the settings of a run name; None if they cannot be read."""
    try:
        config = resolve({}, config_file=path).config
    except (UserError, OSError):
        return None
    manifests = []
    for directory in config.data.data_dir:
        try:
            manifest = read_manifest(data_directory(directory))
        except (UserError, OSError):
            continue
        manifests += [manifest] if manifest is not None else []
    task = markdown_text(" + ".join(dict.fromkeys(each.name for each in manifests)))
    return Origin(config.model.model_name_or_path, task, licences_of(manifests), tuple(map(set_row, manifests)))


def merged_card(origin: Origin, family: ModelFamily, budget: int | None, *, adapter: bool, with_code: bool) -> str:
    """`README.md` of a model directory written by `phi3v-train merge`.

    Args:
        origin: of the model, see `find_origin`.
        family: of the model.
        budget: image budget in the directory's files.
        adapter: an adapter was merged into the base; otherwise the model is a copy.
        with_code: the directory has the model's code.
    """
    made = "an adapter merged into its base" if adapter else "a copy of the model in one number format"
    return "\n".join(
        [
            *header_lines(origin.base, "transformers", family, origin.licences or {}),
            *title_lines(origin.base, origin.task),
            f"Model {MADE_BY}merge`: {made}.",
            "",
            *data_lines(origin.sets),
            "## Use",
            "",
            *family.card_note(with_code=with_code),
            "In this directory; elsewhere its path, or its name on the Hub, takes the place of the dot.",
            "",
            "```python",
            *family.card_usage(".", budget, adapter=False, with_code=with_code),
            "```",
            "",
            *(["With phi3v installed:", ""] if with_code else []),
            "```bash",
            "phi3v-train serve .",
            "```",
            "",
        ]
    )


def card_text(
    config: RunConfig,
    family: ModelFamily,
    *,
    task: str,
    data: Sequence[Manifest],
    base: str,
    trained: Mapping[str, int],
    steps: int,
    samples: int,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    ending: Mapping[str, Any],
) -> str:
    """`README.md`: what the model is, how it was made, what it scores, how to use it.

    `ending` are the entries of `complete.json` about the best evaluation, see `BestKeeper.outcome`.
    """
    adapter, budget = config.method.use_lora, family.image_budget(config.model.image_options)
    option = family.tokens.budget_option
    kind = "Adapter (PEFT)" if adapter else "Model"
    parts = ", ".join(f"{markdown_text(part)} {count:,}" for part, count in trained.items())
    lines = [
        *header_lines(base, "peft" if adapter else "transformers", family, licences_of(data)),
        *title_lines(base, markdown_text(task)),
        f"{kind} {MADE_BY}run`: {config.method.name}, {steps:,} steps of {config.optim.batch_size} samples "
        f"({samples:,} samples seen). Trained parameters: {parts}.",
        *ending_lines(ending, steps),
        "",
        "| | |",
        "| --- | --- |",
        f"| learning rate | {config.optim.learning_rate:g}, {config.optim.lr_scheduler}, "
        f"{config.optim.warmup_steps} warm-up steps |",
        f"| weight decay, clipping | {config.optim.wd:g}, {config.optim.max_grad_norm:g} |",
        *([f"| image budget (`{option}`) | {budget} |"] if budget is not None else []),
        f"| seed | {config.optim.seed} |",
    ]
    if last is not None:
        lines.append(f"| loss of the last step | {last['loss']:.4f} |")
    if before or after or scored_best(ending):
        lines += ["", "## Scores", "", *score_table(before, after, ending)]
    lines += [
        "",
        "![loss](loss.png)",
        "",
        *data_lines([set_row(each) for each in data]),
        "## Use",
        "",
        *family.card_note(),
        "```python",
        *family.card_usage(MODEL, budget, adapter=adapter),
        "```",
        "",
        "```bash",
        "phi3v-train eval --model_name_or_path model --data_dir DIR"
        + (f" --{option} {budget}" if budget is not None else ""),
        *(["phi3v-train merge model merged"] if adapter else []),
        "```",
        "",
        "`config.yaml` holds every setting and its origin, `environment.json` the versions, `data.json` the digests of "
        "the data, `metrics.jsonl` every logged step.",
        "",
    ]
    return "\n".join(lines)


def licences_of(data: Iterable[Manifest]) -> dict[str, Any]:
    """Entries of a card's header about the licences of the sets; empty if none states one."""
    return licence_entries(each.license for each in data)


def header_lines(base: str, library: str, family: ModelFamily, licences: Mapping[str, Any]) -> list[str]:
    """The header of a card, which the Hub reads; it refuses a base that cannot be the name of one there."""
    named = BASE_KEY if is_on_hub(base) else LOCAL_KEY
    header: dict[str, Any] = {
        named: short_name(base),
        "library_name": library,
        "pipeline_tag": "image-text-to-text",
        "tags": list(family.card_tags),
        **licences,
    }
    return ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", ""]


def is_on_hub(base: str) -> bool:
    """Whether a base is called by its name on the Hub, and not by a path."""
    return is_hub_id(base) and not Path(base).is_dir()


def short_name(base: str) -> str:
    """A base's name without the folders of the machine that it was on; of a run's model, the run's name."""
    if is_on_hub(base):
        return base
    path = Path(base)
    return path.parent.name if path.name == MODEL and path.parent.name else path.name


def title_lines(base: str, task: str) -> list[str]:
    """The title of a card; `task` is Markdown, and empty if the data are unknown."""
    return [f"# {markdown_text(short_name(base))}{TUNED_ON if task else ''}{task}", ""]


def set_row(manifest: Manifest) -> str:
    """A set that was trained on, as its `dataset.json` describes it: a row of the card's table."""
    cells = (manifest.name, manifest.source or "not stated", manifest.license or "not stated")
    return f"| {' | '.join(map(markdown_text, cells))} |"


def data_lines(rows: Sequence[str]) -> list[str]:
    """The sets that were trained on, one row each."""
    if not rows:
        return []
    note = "The weights are under the licence of the base model; check what the licences of the data add to it."
    return ["## Data", "", *DATA_HEAD, *rows, "", note, ""]


def ending_lines(ending: Mapping[str, Any], steps: int) -> list[str]:
    """Why training ended before its last step, and which step the weights are those of, as Markdown."""
    lines = []
    if "reason" in ending:
        lines.append(f"Training ended early, after step {steps:,}: {markdown_text(ending['reason'])}.")
    if best := scored_best(ending):
        metric = f"{markdown_text(best['metric'])} on {markdown_code(best['split'])}, {best['value']:.4g}"
        lines.append(f"The weights are those of step {best['step']:,}, the best of the evaluations ({metric}).")
    return ["", *lines] if lines else []


def scored_best(ending: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The best evaluation, if the finished model has its weights; None if it does not, or the run compares none."""
    best: Mapping[str, Any] | None = ending.get("best")
    return best if best is not None and best["step"] == ending.get("model_step") else None


def score_table(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, ending: Mapping[str, Any]
) -> list[str]:
    """Metrics before and after training, as Markdown; those of the best evaluation between, if it has the weights."""
    best = scored_best(ending)
    between = {f"step {best['step']:,}": best} if best and best["step"] != (after or {}).get("step") else {}
    columns = {"before": before, **between, "after": after}
    results = [each for each in columns.values() if each]
    names = list(dict.fromkeys(name for each in results for name in each["metrics"]))
    split, count = results[-1]["split"], results[-1]["num_samples"]

    def cell(result: Mapping[str, Any] | None, name: str) -> str:
        value = (result or {}).get("metrics", {}).get(name)
        return "" if value is None else f"{value:.4g}"

    rows = [[markdown_text(name), *(cell(each, name) for each in columns.values())] for name in names]
    return [
        f"On split {markdown_code(split)} ({count:,} samples):",
        "",
        *(f"| {' | '.join(row)} |" for row in [["metric", *columns], ["---"] * (1 + len(columns)), *rows]),
    ]
