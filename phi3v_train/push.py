"""A finished model to the Hub: one commit with the files of its directory and the card of its run."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import counted
from phi3v_data.sources.hub import remote_errors
from phi3v_data.tokens.model_files import ADAPTER_CONFIG
from phi3v_train.models.directory import weight_files
from phi3v_train.models.locate import check_directory, is_adapter
from phi3v_train.training.checkpoints import open_checkpoint
from phi3v_train.training.folder import CARD, DONE, MODEL, PLOT

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
REPO = re.compile(f"{_NAME}/{_NAME}")
LATER = (408, 409, 412, 423, 425, 429)
"""Refusals, beside those from 500 on, that the same request may not meet again."""
TOKEN = re.compile(r"[!-~]+")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class Upload:
    """Files by their path in the repository, and the links and special files of the directory that stay behind."""

    directory: Path
    files: dict[str, Path]
    left_out: tuple[str, ...]

    @property
    def has_card(self) -> bool:
        """Whether a README.md is among the files."""
        return CARD in self.files


def check_repo(option: str, repo: str) -> None:
    """Refuse a repository's name that is not OWNER/NAME.

    Raises:
        UserError: it is not.
    """
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise UserError(f"{option} {repo}: expected OWNER/NAME, of letters, digits, '-', '_' and '.'")


def read_token() -> str:
    """The token that `hf auth login` or HF_TOKEN gives; no message contains it.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(f"there is no token for the Hub: {LOG_IN}")
    if not TOKEN.fullmatch(token):
        raise UserError(f"the token for the Hub has characters that no token has: {LOG_IN}")
    return token


def collect(model: Path) -> Upload:
    """The files that `push` uploads of a model directory, an adapter, or a run's folder, which means its `model/`.

    A run's model gets the run's card and its plot. Links out of the directory and hidden files stay behind.

    Raises:
        UserError: it is not a model directory, or a file that the model needs is a link out of it.
    """
    if not model.is_dir():
        raise NotFoundError(f"{model}: no such directory; give a model directory, an adapter, or a run's folder")
    is_run = not is_adapter(model) and not (model / "config.json").is_file() and (model / MODEL).is_dir()
    directory = model / MODEL if is_run else model
    if open_checkpoint(directory) is not None:
        raise UserError(f"{directory}: is a checkpoint; make a model directory of it: phi3v-train merge DIR OUT")
    needed = needed_files(directory)
    files, left_out = {}, []
    for path in sorted(paths(directory)):
        name = path.relative_to(directory).as_posix()
        if is_inside(path, directory):
            files[name] = path
        elif name in needed:
            raise UserError(f"{path}: is a link out of the directory, which is not uploaded; put a copy in its place")
        else:
            left_out.append(name)
    parent = directory.absolute().parent
    if CARD not in files and directory.absolute().name == MODEL and (parent / DONE).is_file():
        files |= {name: parent / name for name in (CARD, PLOT) if is_inside(parent / name, parent)}
    return Upload(directory, files, tuple(left_out))


def needed_files(directory: Path) -> set[str]:
    """Names of the configuration and the weights, which are there.

    Raises:
        UserError: a file is missing.
    """
    if is_adapter(directory):
        weights = [name for name in ADAPTER_WEIGHTS if (directory / name).is_file()]
        if not weights:
            raise NotFoundError(f"{directory}: {ADAPTER_WEIGHTS[0]} is missing")
        return {ADAPTER_CONFIG, *weights}
    check_directory(directory)
    return {"config.json", *weight_files(directory)}


def paths(directory: Path) -> Iterator[Path]:
    """Everything below a directory that is not a directory, nor hidden; links to directories are not followed."""
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from paths(path)
        else:
            yield path


def is_inside(path: Path, directory: Path) -> bool:
    """Whether a path is a regular file, and not a link to one outside the directory."""
    try:
        real = path.resolve(strict=True)
        return stat.S_ISREG(os.stat(real).st_mode) and real.is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return False


def push(upload: Upload, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload the files in one commit, and return its address; the repository and the branch are made where need be.

    Raises:
        UserError: no token, no access, no network, or a card that the Hub refuses; nothing is then committed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=read_token())
    failures: tuple[type[Exception], ...] = (HfHubHTTPError, ValueError, RuntimeError, *remote_errors())
    reached = False
    try:
        api.whoami()
        api.create_repo(repo, private=True if private else None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(f"{repo}: is public on the Hub; make it private there, or leave out --private")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        reached = True
        operations = [CommitOperationAdd(name, path) for name, path in upload.files.items()]
        message = f"Upload {counted(len(operations), 'file')} with phi3v-train push"
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)
    except failures as error:
        # Only our own words: the library's may quote a request.
        raise UserError(explain(error, repo, reached=reached)) from None


def explain(error: BaseException, repo: str, *, reached: bool) -> str:
    """One sentence on why an upload failed; `reached` if the Hub had answered before."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return explain(error.__cause__, repo, reached=reached)  # of one file's upload
    response: Any = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    if code == 401:
        return f"{repo}: the Hub does not accept the token (401): {LOG_IN}"
    if code == 403:
        return f"{repo}: the token may not write there (403): use one with the role write, of an account that may"
    if code == 404:
        return f"{repo}: the Hub has no such owner, repository or branch for this token (404): check the name"
    if code is not None:
        if code in LATER or code >= 500:
            return f"{repo}: the Hub refused the upload ({code}); run the same command again later"
        return f"{repo}: the Hub refused the upload ({code}); check the names, the branch and the account's storage"
    if isinstance(error, ValueError):
        return f"{repo}: the Hub refuses the header of the model card: correct the lines between --- in {CARD}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: cannot be read ({error.strerror})"
    if reached:
        return (
            f"{repo}: the Hub answers, but the upload failed; run the same command again, with HF_HUB_DISABLE_XET=1 if "
            "the Hub has no Xet storage for large files"
        )
    return f"{repo}: the Hub cannot be reached; check the network and HF_HUB_OFFLINE, then run the same command again"
