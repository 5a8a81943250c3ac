"""Detects an earlier run in a directory, complete or interrupted, and whether this run can resume it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import counted, join_words
from phi3v_data.registry import own_file_digest
from phi3v_data.same_source import SourceCheck
from phi3v_data.schema import Manifest
from phi3v_data.sources.reads import ReadRecord, Reads, Roots, by_file
from phi3v_data.writing.differences import differences
from phi3v_data.writing.output import Output
from phi3v_data.writing.plan import Plan, read_items
from phi3v_data.writing.records import FORMAT, Begun
from phi3v_data.writing.request import Request


def run_identity(request: Request, unlabelled: frozenset[str] | None, plan: Plan | None) -> dict[str, Any]:
    """The settings and source state that identify a run, without workers, engine and location of the source."""
    identity: dict[str, Any] = {
        "converter": request.cls.name,
        "version": request.cls.version,
        "options": request.options.model_dump(mode="json"),
        "split": dict(request.shares) if request.shares else None,
        "seed": request.seed,
        "limit": request.limit,
        "plain": request.plain,
        "unlabelled": request.unlabelled if unlabelled is None else sorted(unlabelled),
    }
    for option, text in (("name", request.name), ("origin", request.origin), ("license", request.license)):
        if text:
            identity[option] = text
    if request.store != "files":
        identity["store"] = request.store
    if digest := own_file_digest(request.cls):
        identity["converter_file"] = digest
    if plan is not None:
        identity |= {"items": dict(plan.counts), "plan": plan.digest, "content": plan.content}
    return identity


def already_complete(
    request: Request,
    output: Output,
    identity: Mapping[str, Any],
    planned: Reads | None = None,
    plan: Plan | None = None,
) -> Manifest | None:
    """The manifest of an identical earlier run; None if there is none.

    `planned`: the files from which the current `plan` was made; both are None for a generator, which has no plan.

    Raises:
        UserError: the directory contains the result of another run, or of another state of the source.
    """
    saved = output.journal.begun(output.journal.complete)
    if request.overwrite or output.manifest is None or saved is None:
        return None
    new = _as_old(identity, saved.identity)
    if changed := differences(_settings(saved.identity), _settings(new)):
        if _settings(saved.identity) == _settings(new) | {"store": _store(saved.identity)}:
            raise UserError(
                f"{request.out_dir} was converted with --store {_store(saved.identity)}: `phi3v-data store "
                f"{request.out_dir} OUT --store {request.store}` makes the other kind of it without converting again; "
                "--overwrite converts again"
            )
        raise UserError(
            f"{request.out_dir} was converted with other settings: {join_words(changed)}; --overwrite replaces it, "
            "or choose another --out_dir"
        )
    since = os.stat(output.journal.complete).st_mtime_ns
    if new != saved.identity:
        said = _source_changes(saved.planned, saved.identity, new, planned, since)
    else:
        said = _changed_shards(saved.planned, planned, plan, since) if planned and plan else ""
    if said:
        raise UserError(
            f"{request.out_dir} is complete, but the source has changed since: {said}; --overwrite starts over, or "
            "choose another --out_dir"
        )
    return output.manifest


_FROM_SOURCE = ("items", "plan", "content")


def _settings(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the parts that depend on the source."""
    settings = {key: value for key, value in identity.items() if key not in _FROM_SOURCE}
    return settings | {"store": _store(identity)}


def _store(identity: Mapping[str, Any]) -> Any:
    """How a run stores images; the identity names it only if it is not the default."""
    return identity.get("store", "files")


def _source_changes(
    before: Iterable[ReadRecord], old: Mapping[str, Any], new: Mapping[str, Any], planned: Reads | None, since: int
) -> str:
    """The files that differ from the earlier plan (`before`, one record per file), or else the differing counts.

    Where the plan opens no file, such as of a folder of images, the files that were changed after `since` (ns).
    """
    roots = planned.roots if planned else Roots()
    then = {(read.root, read.path): read for read in before}
    now = {(read.root, read.path): read for read in by_file(planned.records())} if planned else {}
    files = [
        f"'{roots.where(read)}' {'has other content' if name in now else 'is no longer read'}"
        for name, read in then.items()
        if name not in now or now[name].digest != read.digest
    ]
    files += [f"'{roots.where(read)}' is new" for name, read in now.items() if then and name not in then]
    old_items, items = old.get("items", {}), new.get("items", {})
    counts = [
        f"{split} has {counted(items.get(split, 0), 'item')}, not {old_items.get(split, 0):,}"
        for split in dict.fromkeys((*old_items, *items))
        if items.get(split) != old_items.get(split)
    ]
    newer = [] if files or counts else [f"'{path}' is newer than that" for path in _newer_files(roots, since)]
    return join_words(files or counts or newer or ["its items have other keys, sizes or contents"], limit=3)


def _newer_files(roots: Roots, since: int) -> list[str]:
    """Files of the source that were changed after a time (ns), as paths in it."""
    root = next((Path(folder) for label, folder in roots.folders if label == "source"), None)
    if root is None:
        return []
    if not root.is_dir():
        return [root.name] if _is_newer(root, since) else []
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return sorted(path.relative_to(root).as_posix() for path in paths if _is_newer(path, since))


def _is_newer(path: str | Path, since: int) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    return max(there.st_mtime_ns, there.st_ctime_ns) >= since


def _changed_shards(before: Iterable[ReadRecord], planned: Reads, plan: Plan, since: int) -> str:
    """The files that hold the items of a plan and have other content than then, perhaps where the plan did not look.

    A file that was not changed after `since` (ns) is not read.
    """
    newer = {path for path in planned.paths() if _is_newer(path, since)}
    if not newer:
        return ""
    shards = {item.path for part in plan.parts for item in read_items(plan.folder, part)} | planned.tables
    then = {(read.root, read.path): read.digest for read in before}
    now = [read for read in by_file(planned.records()) if planned.roots.locate(read) in newer & shards]
    changed = [read for read in now if then.get((read.root, read.path), read.digest) != read.digest]
    return join_words([f"'{planned.roots.where(read)}' has other content" for read in changed], limit=3)


def _as_old(identity: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the parts that earlier versions did not record."""
    return {key: value for key, value in identity.items() if key in saved or key not in ("content", "converter_file")}


def interrupted(
    request: Request,
    output: Output,
    identity: Mapping[str, Any],
    planned: Reads | None = None,
    *,
    joining: bool = False,
) -> Begun | None:
    """The journal's record of the interrupted run to resume; None if a new run is to be started.

    `planned`: as for `already_complete`. With `joining` the run is still going on, perhaps without a finished part yet,
    and the source must be the same to the last item. A record of an older version (`has_digests` is false) is of the
    same settings and plan, but does not say what its finished parts were made from: they must be converted again.

    Raises:
        UserError: there is an interrupted run with other settings, or of another state of the source.
    """
    journal = output.journal
    saved = journal.begun(journal.identity)
    if saved is None or not (joining or journal.has_parts()):
        return None
    old = saved.identity
    is_ours = has_digests(saved)
    new = dict(identity) if is_ours else _as_old(identity, old)
    if is_ours and "content" in old and not joining:
        new["content"] = old["content"]  # compared item by item, so that the message can name one
    if new == old and is_ours and saved.overwrite >= request.overwrite:
        return saved
    if request.overwrite:
        return None
    if changed := differences(_settings(old), _settings(new)):
        advice = "run all slices with the same settings" if joining else "--overwrite starts over"
        raise UserError(
            f"{request.out_dir} contains an interrupted conversion with other settings: {join_words(changed)}; "
            f"{advice}, or choose another --out_dir"
        )
    if new != old:
        file = SourceCheck(request.out_dir, planned.roots).changed_read(journal) if planned and is_ours else None
        if planned and file:
            said = f"'{planned.roots.where(file)}' has other content"
        else:
            since = os.stat(journal.identity).st_mtime_ns
            said = _source_changes(by_file(saved.planned), old, new, planned, since)
        raise UserError(
            f"{request.out_dir} contains an interrupted conversion, but the source has changed since: {said}; restore "
            "the old content, or start over with --overwrite"
        )
    return saved


def has_digests(saved: Begun) -> bool:
    """Whether the record is of a version that recorded digests of the source, so that its finished parts count."""
    return saved.format == FORMAT


def starts_over(saved: Begun | None) -> tuple[str, ...]:
    """Warning that the parts of an older version are converted again."""
    if saved is None or has_digests(saved):
        return ()
    return (
        "the interrupted conversion was begun by an older version of phi3v, which did not record digests of the "
        "source: everything was converted again",
    )
