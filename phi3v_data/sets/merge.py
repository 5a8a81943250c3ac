"""Joins sets into one. Collisions are resolved in the order of the arguments, and reported.

ids       kept if they are unique; otherwise each such row gets the name of its set in front
images    equal files with the same path are kept once; a file with other content moves to a folder named after its set
groups    a group that occurs in sets of different names gets the name of the set in front
splits    splits with the same name are joined, in the order of the arguments
leaks     samples and groups that are in several splits now are kept, and reported
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from phi3v_data.choices import ImageMode
from phi3v_data.errors import UserError
from phi3v_data.jsonl import encode_line
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.sets.collisions import Flags, GroupNames, IdNames, ImageNames, set_labels
from phi3v_data.sets.merged_leaks import MergedLeaks
from phi3v_data.sets.merged_manifest import merge_facts
from phi3v_data.sets.place_images import place_images
from phi3v_data.sets.reading import Progress, SourceSet, decode_row, read_set, row_images
from phi3v_data.sets.writing import SetResult, Stage, check_places, make_set
from phi3v_data.splits import MAX_NAME_BYTES, canonical_split, is_split_name
from phi3v_data.validate.badrow import load_row
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.images import used_images
from phi3v_data.writing.publish import REJECTS
from phi3v_data.writing.request import StoreName

VERSION = "1"


def merge_sets(
    directories: Sequence[str | Path],
    out_dir: str | Path,
    *,
    name: str = "",
    images: ImageMode = ImageMode.link,
    store: StoreName = "files",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SetResult:
    """Join the rows and images of directories into one.

    Args:
        name: name of the new set. Default: the common name of the sets, else their names joined by `-`.

    Raises:
        UserError: a row cannot be read, or the name is not allowed in file names.
    """
    if not directories:
        raise UserError("merge needs at least one directory to read: phi3v-data merge DIR... OUT")
    folders = [Path(directory) for directory in directories]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("merge: a directory is given twice; give each directory once")
    if name and not is_split_name(name):
        raise UserError(
            f"--name {name!r} cannot be used in file names; use up to {MAX_NAME_BYTES} letters, digits, _ and -"
        )
    target = check_places(Path(out_dir), folders)
    progress = progress or (lambda stage, done, total: None)
    with paused_collector(), ExitStack() as stack:
        sources = []
        for folder in folders:
            source = read_set(folder, progress, mixed_names=True)
            stack.callback(source.close)
            source.survey.used = used_images(source.table, source.survey.tree)
            sources.append(source)
        work = _Merge(sources, name, progress)
        identity = {
            "command": "merge",
            "version": VERSION,
            "options": {"name": work.name},
            **{f"input {number}": source.identity() for number, source in enumerate(sources, 1)},
        }
        return make_set(target, identity, work.build, name=work.name, images=images, store=store, overwrite=overwrite)


class _Merge:
    """Merges the sets."""

    def __init__(self, sources: Sequence[SourceSet], name: str, progress: Progress) -> None:
        self.sources = sources
        self.progress = progress
        self.labels = set_labels([source.name for source in sources])
        names = list(dict.fromkeys(source.name for source in sources))
        self.name = name or "-".join(names)[:MAX_NAME_BYTES].rstrip("-_.")

    def build(self, stage: Stage) -> Manifest:
        """Resolve collisions, write the rows and images, and collect notes."""
        self.ids = IdNames(self.sources, self.labels)
        self.groups = GroupNames(self.sources)
        self.images = ImageNames(self.sources, self.labels, self.progress)
        splits, labelled = self.target_splits(stage)
        done, total = 0, sum(len(source.table) for source in self.sources)
        for number, source in enumerate(self.sources):
            done = self.write(stage, number, source, splits[number], done, total)
        for number, source in enumerate(self.sources):
            place_images(stage, source, self.progress, rename=self.images.placer(number))
        stage.write_file(REJECTS, b"".join(map(_whole_lines, self.sources)))
        for notes in (self.ids.notes(), self.groups.notes(), self.images.notes()):
            stage.notes.extend(notes)
        stage.notes.extend(MergedLeaks(self.sources, splits).notes(self.groups.changed))
        return self.manifest(stage, labelled)

    def target_splits(self, stage: Stage) -> tuple[list[dict[str, str]], dict[str, bool]]:
        """The new name of each split of each set, and whether each new split has answers."""
        labelled: dict[str, bool] = {}
        result: list[dict[str, str]] = []
        origins: dict[str, list[str]] = {}
        for source, label in zip(self.sources, self.labels, strict=True):
            mapping: dict[str, str] = {}
            for split in dict.fromkeys(split for split, _ in source.survey.files):
                target = canonical_split(split)
                has_answers = source.is_labelled(split)
                if labelled.setdefault(target, has_answers) != has_answers:
                    apart = f"{target}_{label}"
                    words = "has" if has_answers else "has no"
                    stage.notes.append(
                        f"split {split} of {label} {words} answers, unlike those of earlier sets, and is called {apart}"
                    )
                    target = apart
                    labelled[target] = has_answers
                mapping[split] = target
                origins.setdefault(target, []).append(f"{label}/{split}")
            result.append(mapping)
        for target, parts in origins.items():
            if len(parts) > 1:
                stage.notes.append(f"split {target} joins {', '.join(parts)}")
        return result, labelled

    def write(self, stage: Stage, number: int, source: SourceSet, splits: dict[str, str], done: int, total: int) -> int:
        """Write the rows of one set; rows without collisions are unchanged."""
        table = source.table
        targets = [splits[split] for split in table.splits]
        row_splits = table.split_of_rows()
        changed: Flags = self.ids.changed[number] | self.groups.changed[number] | self.images.changed[number]
        for row, line in source.rows():
            if changed[row]:
                line = self.rewrite(number, row, line)
            stage.write(targets[row_splits[row]], line, row_images(decode_row(line)))
            done += 1
            if done % 4096 == 0:
                self.progress("write", done, total)
        return done

    def rewrite(self, number: int, row: int, line: bytes) -> bytes:
        """A row with its new names."""
        value = load_row(line)
        if self.ids.changed[number][row]:
            value["id"] = self.ids.rename(number, row, value["id"])
        if self.groups.changed[number][row]:
            value["group"] = self.groups.rename(number, value["group"])
        if self.images.changed[number][row]:
            self.images.rename(number, row, value)
        try:
            return encode_line(value)[:-1]
        except UnicodeEncodeError:  # a lone surrogate, which can only be written as an escape
            import json

            return json.dumps(value).encode()

    def manifest(self, stage: Stage, labelled: dict[str, bool]) -> Manifest:
        """The manifest of the new set; differences between the sets become notes."""
        facts, notes = merge_facts(
            [source.manifest for source in self.sources], [source.name for source in self.sources]
        )
        stage.notes.extend(notes)
        return Manifest(
            format=stage.format,
            name=self.name,
            splits=stage.splits(labelled.__getitem__),
            history=(ConverterInfo(name="merge", version=VERSION, options={"sets": self.origins()}),),
            **facts,
        )

    def origins(self) -> list[dict[str, Any]]:
        """Records of the sets for `dataset.json`."""
        result = []
        for source, label in zip(self.sources, self.labels, strict=True):
            manifest = source.manifest
            entry: dict[str, Any] = {"name": source.name, "label": label, "rows": len(source.table)}
            if manifest is not None:
                entry["converter"] = manifest.converter.model_dump(mode="json") if manifest.converter else None
                entry["history"] = [step.model_dump(mode="json") for step in manifest.history]
            result.append(entry)
        return result


def _whole_lines(source: SourceSet) -> bytes:
    content = source.rejects()
    return content if not content or content.endswith(b"\n") else content + b"\n"
