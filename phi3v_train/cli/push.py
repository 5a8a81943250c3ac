"""`phi3v-train push`, and the upload at the end of `phi3v-train run --push_to_hub`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info
from phi3v_data.errors import GOOD, PROBLEMS, UserError
from phi3v_data.messages import counted

PUSH_TO_HUB = "--push_to_hub"


@command_info(
    examples=[
        "phi3v-train push output --repo OWNER/NAME --private",
        "phi3v-train push merged --repo OWNER/NAME --revision v2",
    ]
)
def push(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model directory, adapter, or a run's folder: its model.")
    ],
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub; made if it is not there yet.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make it private; refuse one that is public.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to commit to, made where need be. Default: main.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Upload a model or an adapter to the Hub, with its card, in one commit.

    A run's model gets the run's README.md, with licences and sets, and its plot. Links out of the directory and hidden
    files are not uploaded. The token is that of `hf auth login` or HF_TOKEN.
    """
    from phi3v_train.push import check_repo

    check_repo("--repo", repo)
    upload(model, repo, private=private, revision=revision, quiet=quiet)


def upload(model: Path, repo: str, *, private: bool = False, revision: str | None = None, quiet: bool) -> None:
    """Upload, and print the commit's address; warnings on stderr."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    from phi3v_train.push import collect, push

    found = collect(model)
    for name in found.left_out:
        print(f"warning: {found.directory / name}: not a file of the directory, not uploaded", file=sys.stderr)
    if not found.has_card:
        print(f"warning: {found.directory}: has no README.md; copy the card of its run there", file=sys.stderr)
    hidden = not are_progress_bars_disabled() and (quiet or not sys.stderr.isatty())
    if hidden:
        disable_progress_bars()
    try:
        address = push(found, repo, private=private, revision=revision)
    finally:
        if hidden:
            enable_progress_bars()
    print(f"{repo}: {counted(len(found.files), 'file')} uploaded, {address}")


def upload_finished(output_dir: Path, repo: str | None, *, quiet: bool, to_stderr: bool = False) -> int:
    """The exit code of the upload of a finished run's model; if it fails, how to repeat it is on stderr."""
    if repo is None:
        return GOOD
    try:
        if to_stderr:
            from contextlib import redirect_stdout

            with redirect_stdout(sys.stderr):
                upload(output_dir, repo, quiet=quiet)
        else:
            upload(output_dir, repo, quiet=quiet)
    except UserError as error:
        again = f"phi3v-train push {shlex.quote(str(output_dir))} --repo {repo}"
        print(f"error: {error}; the run is complete, upload it with: {again}", file=sys.stderr)
        return PROBLEMS
    return GOOD
