"""Dataset cards: `README.md` with the header that the Hugging Face Hub reads, counts, sources and sample images."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.files import SHARDS, read_regular, unsafe_reason, write_bytes
from phi3v_data.jsonl import BOM, Line, read_line_at
from phi3v_data.licences import licence_entries
from phi3v_data.markdown import markdown_code, markdown_text
from phi3v_data.messages import counted, join_words
from phi3v_data.report.gallery import collect, parse_row, row_label, row_turns, turn_images
from phi3v_data.report.thumbnails import Thumbnailer
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.sets.stats import set_stats
from phi3v_data.shards.view import data_directory
from phi3v_data.tokens.registry import get_family
from phi3v_data.validate import validate

CARD = "README.md"
MARK = "<!-- Written by `phi3v-data card`; run it again after a change. -->"
EXPORT_MARK = "<!-- Written by `phi3v-data export`; export again after a change. -->"
FORM = ", as a conversations directory: one JSON object per line, images {}"
MAX_TEXT = 200
MAX_IMAGES = 4
MAX_LABELS = 20

_TASKS = {
    "classification": ["image-classification"],
    "vqa": ["visual-question-answering"],
    "chat": ["image-text-to-text"],
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(
    directory: str | Path,
    *,
    num_samples: int = 6,
    embed: bool = False,
    license_id: str = "",
    model: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `DIR/README.md`.

    Args:
        num_samples: number of samples to show, spread over splits and labels.
        embed: embed the images as data URIs instead of linking to `images/`; those in shards always are.
        license_id: an identifier of the Hub such as `cc-by-4.0`, instead of the licence in `dataset.json`.
        model: model family or model directory whose tokens are counted.
        overwrite: replace a README.md that this function did not write.

    Raises:
        UserError: there is another README.md, or the card cannot be written; it is an export, which has other files
            than a card would name.
    """
    if data_directory(directory) != Path(directory):
        raise UserError(
            f"{directory} is an export, and a card names the files of a conversations directory: give the one that "
            f"was exported (`phi3v-data merge {directory} OUT` makes one of an export); `export hub` writes a card"
        )
    path = Path(directory) / CARD
    text = make_card(directory, num_samples=num_samples, embed=embed, license_id=license_id, model=model)
    try:
        known = read_regular(path).decode(errors="replace")
    except FileNotFoundError:
        known = MARK
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move it away") from None
    if MARK not in known and not overwrite:
        raise UserError(f"{path} was not written by `phi3v-data card`; --overwrite replaces it")
    try:
        write_bytes(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def make_card(
    directory: str | Path,
    *,
    num_samples: int = 6,
    embed: bool = False,
    license_id: str = "",
    model: str | Path | None = None,
    data_files: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The text of a card.

    Args:
        data_files: files of each split of an export that the card describes, instead of those of the directory.
    """
    dataset = Dataset(data_directory(directory))
    stats = set_stats(directory, level="quick", model=model)
    manifest = dataset.manifest or Manifest(name=stats["name"], task="chat", splits={})
    in_shards = (dataset.directory / "images").is_file()  # no link leads to one of them
    place = f"in tar files under `{SHARDS}/`" if in_shards else "under `images/`"
    parts = [
        "---",
        _yaml(_header(manifest, stats, license_id, data_files or dataset.files)).rstrip("\n"),
        "---",
        "",
        MARK if data_files is None else EXPORT_MARK,
        "",
        f"# {_text(manifest.name)}",
        "",
        *_summary(manifest, stats, "" if data_files is not None else FORM.format(place)),
        "",
        *_counts(manifest, stats),
        *_labels(stats),
        *_provenance(manifest, license_id),
        *_samples(dataset, num_samples, embed or in_shards),
        *(_use_export(data_files) if data_files is not None else _use(dataset)),
    ]
    return "\n".join(parts) + "\n"


def _yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))


def _header(
    manifest: Manifest, stats: Mapping[str, Any], license_id: str, data_files: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The metadata for the Hub: licence, task, size, and the files of each split."""
    known = licence_entries([license_id or manifest.license]) or {"license": "unknown"}
    files = [
        {"split": split.replace("-", "_"), "path": list(names) if len(names) > 1 else names[0]}
        for split, names in data_files.items()
        if names
    ]
    return {
        **known,
        "pretty_name": manifest.name,
        "task_categories": _TASKS[manifest.task],
        "size_categories": [next((word for limit, word in _SIZES if stats["num_samples"] < limit), "1M<n<10M")],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _summary(manifest: Manifest, stats: Mapping[str, Any], form: str) -> Iterator[str]:
    yield (
        f"{counted(stats['num_samples'], 'sample')} with {counted(stats['num_turns'], 'turn')} and "
        f"{counted(stats['num_images'], 'image')}{form}."
    )
    yield ""
    metrics = ", ".join(map(markdown_code, manifest.metrics))
    yield f"- Task: {manifest.task}{f'; scored by {metrics}' if metrics else ''}"
    if stats["image_sizes"]:
        sizes = list(stats["image_sizes"].items())
        words = join_words(sizes, 3, each=lambda size: f"{size[0].replace('x', ' x ')} ({size[1]:,})")
        yield f"- Image sizes: {words}"
    tokens = stats["tokens"]
    if "median" in tokens:
        model = f"the model family {markdown_code(stats['model'])}"
        option = get_family(stats["model"]).budget_option
        budget = "" if stats["num_crops"] is None else f" at `{option}` {stats['num_crops']}"
        how = "exact" if stats["text_tokens"] == "exact" else "images exact, text estimated"
        yield (
            f"- Tokens per sample with {model}{budget}: median {tokens['median']:,}, at most {tokens['max']:,} ({how})"
        )


def _counts(manifest: Manifest, stats: Mapping[str, Any]) -> Iterator[str]:
    yield "| split | samples | turns | images used | answers |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for split, counts in stats["splits"].items():
        info = manifest.splits.get(split)
        answers = "yes" if info is None or info.labelled else "no"
        yield (f"| {_cell(split)} | {counts['samples']:,} | {counts['turns']:,} | {counts['images']:,} | {answers} |")
    yield ""


def _labels(stats: Mapping[str, Any]) -> Iterator[str]:
    labelled = {
        split: counts for split, counts in stats["labels"].items() if counts and len(counts) <= stats["num_samples"] / 2
    }
    if not labelled:
        return
    names = list(dict.fromkeys(label for counts in labelled.values() for label in counts))
    yield "## Labels"
    yield ""
    yield f"| label | {' | '.join(map(_cell, labelled))} |"
    yield f"| --- |{' ---: |' * len(labelled)}"
    for label in names[:MAX_LABELS]:
        yield f"| {_cell(label)} | {' | '.join(f'{counts.get(label, 0):,}' for counts in labelled.values())} |"
    if len(names) > MAX_LABELS:
        yield ""
        yield f"and {counted(len(names) - MAX_LABELS, 'more label')}."
    yield ""


def _provenance(manifest: Manifest, license_id: str) -> Iterator[str]:
    yield "## Source and licence"
    yield ""
    yield f"- Source: {_text(manifest.source) or 'not stated'}"
    stated = _text(license_id or manifest.license)
    yield f"- Licence: {stated or 'not stated; ask the rights holder before sharing'}"
    steps = [*([manifest.converter] if manifest.converter else []), *manifest.history]
    for step in steps:
        yield f"- Made by {markdown_code(step.name)} version {_text(step.version)}{_options(step)}"
    for what, counts in (("Left out", manifest.rejects), ("Notes", manifest.notes)):
        if counts:
            yield f"- {what}: {', '.join(f'{count:,} {_text(code)}' for code, count in counts.items())}"
    yield ""


def _options(step: ConverterInfo) -> str:
    plain = {
        key: value
        for key, value in step.options.items()
        if isinstance(value, str | int | float | bool) and value not in ("", False)
    }
    return f" ({', '.join(f'{_text(key)} {_text(str(value))}' for key, value in plain.items())})" if plain else ""


def _samples(dataset: Dataset, num_samples: int, embed: bool) -> Iterator[str]:
    """Yield the section with samples spread over splits and labels, each with its first images."""
    if not num_samples:
        return
    report = validate(dataset.directory, level="quick", max_problems=1, use_receipt=False)
    report = report.model_copy(update={"problems": ()})
    chosen = collect(dataset, report, limit=num_samples).samples
    thumbnails = Thumbnailer(dataset.directory, num_samples * MAX_IMAGES, budget=4_000_000) if embed else None
    classes = frozenset(dataset.manifest.classes) if dataset.manifest else frozenset()
    yield "## Samples"
    yield ""
    for candidate in sorted(chosen):
        with open(dataset.directory / candidate.location.file, "rb") as file:
            data = read_line_at(file.fileno(), candidate.offset).removeprefix(BOM)
        turns = row_turns(parse_row(Line(data, candidate.location.line, candidate.offset)))
        if not turns:
            continue
        names = [name for turn in turns for name in turn_images(turn)][:MAX_IMAGES]
        images = [tag for name in names if (tag := _image(name, thumbnails))]
        if images:
            yield " ".join(images)
            yield ""
        yield f"> {_text(turns[0].get('user'))}"
        yield ">"
        yield f"> **{_text(row_label(turns, classes) or turns[0].get('assistant'))}**"
        yield ""


def _image(name: str, thumbnails: Thumbnailer | None) -> str:
    if unsafe_reason(name):
        return ""
    source = thumbnails.make(name).uri if thumbnails else f"images/{quote(name)}"
    return f'<img src="{source}" alt="{html.escape(name)}" height="160">' if source else ""


def _use(dataset: Dataset) -> Iterator[str]:
    split = next(iter(dataset))
    yield "## Usage"
    yield ""
    yield "```python"
    yield "import io"
    yield ""
    yield "from phi3v_data import Dataset"
    yield "from PIL import Image"
    yield ""
    yield f'split = Dataset("DIR")[{split!r}]'
    yield "for sample in split[:3]:"
    yield "    images = [Image.open(io.BytesIO(split.image_bytes(name))) for name in sample.images]"
    yield "    print(images, sample.conversations[0].user)"
    yield "```"


def _use_export(splits: Iterable[str]) -> Iterator[str]:
    yield "## Usage"
    yield ""
    yield "```python"
    yield "from datasets import load_dataset"
    yield ""
    yield f'split = load_dataset("PATH", split={next(iter(splits), "train")!r})'
    yield "```"


def _text(value: object) -> str:
    return markdown_text(value, MAX_TEXT)


def _cell(value: str) -> str:
    return _text(value) or "(empty)"
