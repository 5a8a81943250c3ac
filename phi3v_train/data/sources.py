"""The directories a run reads, each with its split and its image budget."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phi3v_data.dataset import Dataset, Split, list_directory
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.remote.address import is_remote, spelled
from phi3v_data.remote.cache import LIMIT_VARIABLE
from phi3v_data.schema import Manifest, Report
from phi3v_data.shards.view import data_directory
from phi3v_data.tokens.family import TokenFamily
from phi3v_train.config import DEFAULT_NUM_CROPS
from phi3v_train.models.directory import ModelFiles

EVAL_SPLITS = ("val", "dev", "dev_seen", "test")
"""Where no `--eval_split` is given, the first of these that a directory has and that is labelled."""


TOTAL = "total"
"""Key of the loss over all sources, among those of the sources: `unique_names` gives it to none."""


@dataclass(frozen=True, slots=True)
class Source:
    """One split of one directory.

    `num_crops` is the image budget, None for a model family without one. `num_crops_from` is its origin: option,
    dataset.json, model (written into it by a run), processor (the model's own value), default or none. `given` is the
    path or address that was given; of an export, `directory` is its view.
    """

    split: Split
    manifest: Manifest | None
    num_crops: int | None
    num_crops_from: str
    given: str

    @property
    def directory(self) -> Path:
        """DIR."""
        return self.split.directory

    @property
    def name(self) -> str:
        """Name of the dataset; that of its directory if there is no dataset.json."""
        return self.manifest.name if self.manifest is not None else self.directory.name

    def __len__(self) -> int:
        return len(self.split)

    def with_option(self, num_crops: int | None) -> "Source":
        """The same with the image budget of an option, if given."""
        return self if num_crops is None else replace(self, num_crops=num_crops, num_crops_from="option")

    def with_model(self, files: ModelFiles) -> "Source":
        """The same with the image budget for a model, its own where `resolve_num_crops` says so.

        Raises:
            UserError: the model has a budget that its family does not take.
        """
        if self.num_crops_from == "option":
            return self  # checked by the family's `image_budget`
        if files.family.budget is None:
            return replace(self, num_crops=None, num_crops_from="none")
        tuned, own = files.tuned_num_crops, files.stored_num_crops
        budget, origin = resolve_num_crops(None, self.manifest, tuned, own)
        if origin == "default" and files.family.tokens.default_budget is not None:
            budget = files.family.tokens.default_budget
        return replace(self, num_crops=budget, num_crops_from=origin)


def budget_shown(source: Source, tokens: TokenFamily) -> tuple[int | None, str]:
    """The image budget that holds for a source, and its origin; the processor's own where none is given.

    Args:
        source: resolved for the model.
        tokens: the model's, with the settings of its processor.
    """
    if source.num_crops is not None or tokens.own_budget is None:
        return source.num_crops, source.num_crops_from
    return tokens.own_budget, "processor"


def unique_names(sources: Sequence[Source]) -> tuple[str, ...]:
    """Name of each source, a repeated one with a number: `ucf101`, `ucf101 (2)`."""
    names: list[str] = []
    for source in sources:
        name, number = source.name, 1
        while name in names or name == TOTAL:
            number += 1
            name = f"{source.name} ({number})"
        names.append(name)
    return tuple(names)


def resolve_num_crops(
    option: int | None,
    manifest: Manifest | None,
    tuned: int | None = None,
    own: int | None = None,
) -> tuple[int, str]:
    """The tile budget and what set it.

    Args:
        option: of the command line, a config file or a recipe.
        manifest: the directory's `dataset.json`.
        tuned: what an earlier run wrote into the model, which is used, and trained further, as it was trained.
        own: what the model's processor has; the default of such a model.
    """
    suggested = manifest.num_crops if manifest is not None else None
    layers = [(option, "option"), (tuned, "model"), (suggested, "dataset.json"), (own, "processor")]
    for value, origin in layers:
        if value is not None:
            return value, origin
    return DEFAULT_NUM_CROPS, "default"


def open_source(
    directory: str | Path,
    split: str,
    *,
    num_crops: int | None = None,
    labelled: bool = False,
) -> Source:
    """Open a split.

    Args:
        directory: DIR, complete or bare.
        split: its name.
        num_crops: the option; None if not given.
        labelled: refuse a split without answers.

    Raises:
        UserError: no such directory or split, no row in it, or no answers where they are needed.
    """
    dataset = Dataset(data_directory(directory))
    rows = dataset[split]
    if not len(rows):
        raise UserError(f"{directory}: split {split!r} has no rows")
    info = dataset.manifest.splits.get(split) if dataset.manifest else None
    if labelled and info is not None and not info.labelled:
        raise UserError(
            f"{directory}: split {split!r} has no answers (`labelled: false` in dataset.json): it can be predicted, "
            "not trained or evaluated on"
        )
    budget, origin = resolve_num_crops(num_crops, dataset.manifest)
    return Source(rows, dataset.manifest, budget, origin, spelled(directory))


def use_cache(limit: float | None) -> None:
    """Set the size of the local cache of remote images, in GB, for this process and those that it starts."""
    if limit is not None:
        os.environ[LIMIT_VARIABLE] = str(limit)


def require_data_dir(directories: Sequence[str | Path]) -> None:
    """Refuse a run without data.

    Raises:
        UserError: no directory is given.
    """
    if not directories:
        raise UserError("no data: give --data_dir, a conversations directory; it may be given several times")


def refuse_missing_directories(directories: Sequence[str | Path]) -> None:
    """Refuse directories of this machine that do not exist; nothing is read, so this can be done before all else.

    Raises:
        UserError: the first of them.
    """
    for directory in directories:
        if not is_remote(directory) and not Path(directory).is_dir():
            list_directory(Path(directory))  # says so


def open_sources(directories: Sequence[str | Path], split: str, *, num_crops: int | None = None) -> tuple[Source, ...]:
    """Open one labelled split of several directories, for training; see `open_source`.

    Raises:
        UserError: see `open_source`; or no directory at all, or one twice.
    """
    require_data_dir(directories)
    resolved = [Path(directory).resolve() for directory in directories]
    for index, directory in enumerate(resolved):
        if directory in resolved[:index]:
            raise UserError(f"{directories[index]}: given twice as --data_dir; use --mix to weight a directory")
    return tuple(open_source(directory, split, num_crops=num_crops, labelled=True) for directory in directories)


def find_row(source: Source, sample_id: str) -> int:
    """Row of the sample with this id; reads the split from its start.

    Raises:
        NotFoundError: there is none.
    """
    spelled = {json.dumps(sample_id, ensure_ascii=flag)[1:-1].encode() for flag in (True, False)}
    for row in range(len(source)):
        raw = source.split.raw(row)
        if any(text in raw for text in spelled) and source.split[row].id == sample_id:
            return row
    raise NotFoundError(f"{source.directory}: split {source.split.name!r} has no sample with the id {sample_id!r}")


def require_valid(
    directory: str | Path,
    *,
    num_crops: int | None = None,
    image_options: Mapping[str, int] | None = None,
    model: str | None = None,
    workers: int = 1,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Report:
    """Validate a directory in full, or take the receipt of an earlier validation where nothing has changed since.

    Of several processes let one call it, before any opens the directory. `model` is the name of the model family.

    Raises:
        UserError: there are errors in it; the first is named.
    """
    from phi3v_data.validate import validate

    report = validate(
        directory,
        level="full",
        num_crops=num_crops,
        image_options=image_options,
        model=model,
        workers=workers,
        progress=progress,
    )
    errors = [problem for problem in report.problems if problem.severity == "error"]
    if not report.ok and errors:
        first = errors[0]
        place = first.file + (f":{first.line}" if first.line is not None else "")
        count = sum(report.summary.problems[code] for code in {problem.code for problem in errors})
        raise UserError(
            f"{directory}: {count} error{'s' if count > 1 else ''} in the data, the first "
            f"{f'at {place} ' if place else ''}{f'{first.field} ' if first.field else ''}"
            f"({first.code}): {first.message}; `phi3v-data validate {directory}` lists all"
        )
    return report


def choose_eval_split(directory: str | Path, wanted: str | None) -> str | None:
    """The split to evaluate on: the wanted one, else the first of val, dev, dev_seen, test that has answers.

    Returns None if nothing was asked for and there is none.

    Raises:
        UserError: the wanted split is not there.
    """
    dataset = Dataset(data_directory(directory))
    if wanted is not None:
        return dataset[wanted].name
    for split in EVAL_SPLITS:
        info = dataset.manifest.splits.get(split) if dataset.manifest else None
        if split in dataset and (info is None or info.labelled) and len(dataset[split]):
            return split
    return None
