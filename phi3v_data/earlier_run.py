"""What an earlier run left in a directory, and whether this run is the same: identity, complete, interrupted."""

from collections.abc import Mapping
from typing import Any

from phi3v_data.converters.reads import Roots
from phi3v_data.converters.registry import own_file_digest
from phi3v_data.errors import UserError
from phi3v_data.same_source import SourceCheck
from phi3v_data.schema import Manifest
from phi3v_data.writing.journal import FORMAT, Begun, differences, join_words
from phi3v_data.writing.output import Output
from phi3v_data.writing.plan import Plan
from phi3v_data.writing.request import Request


def run_identity(request: Request, unlabelled: frozenset[str] | None, plan: Plan | None) -> dict[str, Any]:
    """What makes two runs the same; never workers, engine, or where the source lies."""
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
    if request.name:
        identity["name"] = request.name
    if digest := own_file_digest(request.cls):
        identity["converter_file"] = digest
    if plan is not None:
        identity |= {"items": dict(plan.counts), "plan": plan.digest, "content": plan.content}
    return identity


def already_complete(request: Request, output: Output, identity: Mapping[str, Any]) -> Manifest | None:
    """The manifest of an earlier run that did just this; None where there is none.

    Raises:
        UserError: the directory holds the result of another run.
    """
    saved = output.journal.begun(output.journal.complete)
    if request.overwrite or output.manifest is None or saved is None:
        return None
    if changed := differences(saved.identity, _as_old(identity, saved.identity)):
        raise UserError(
            f"{request.out_dir} was converted with other settings: {join_words(changed)}; --overwrite replaces it, "
            "or choose another --out_dir"
        )
    return output.manifest


def _as_old(identity: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without what versions before this one did not keep."""
    return {key: value for key, value in identity.items() if key in saved or key not in ("content", "converter_file")}


def interrupted(request: Request, output: Output, identity: Mapping[str, Any], roots: Roots) -> Begun | None:
    """What the journal says of the interrupted run that this one resumes; None where a new one is to be begun.

    Raises:
        UserError: an interrupted run with other settings, or of an older version, is there.
    """
    journal = output.journal
    saved = journal.begun(journal.identity)
    if saved is None or not journal.has_receipts():
        return None
    old = saved.identity
    is_ours = saved.format == FORMAT
    new = dict(identity) if is_ours else _as_old(identity, old)
    if is_ours and "content" in old:
        new["content"] = old["content"]  # compared item by item, so that the message can name one
    changed = differences(old, new)
    if not changed and is_ours and saved.overwrite >= request.overwrite:
        return saved
    if request.overwrite:
        return None
    if changed:
        if is_ours and old.get("plan") != identity.get("plan"):
            file = SourceCheck(request.out_dir, roots).changed_file(saved.planned)
            changed += [f"'{file.path}' of the source"] if file else []
        raise UserError(
            f"{request.out_dir} holds an interrupted conversion with other settings: {join_words(changed)}; "
            "--overwrite starts over, or choose another --out_dir"
        )
    raise UserError(
        f"{request.out_dir} holds a conversion that another version of phi3v was interrupted in; that version kept no "
        "digests of the source, so finish it with that one, or start over with --overwrite"
    )
