"""Datasets on the Hub: parquet files are read by byte ranges; archives and other files are downloaded."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError, how_to_install

REMOTE = "hf://"
# Datasets that consist of one archive among other files.
_ARCHIVES = {"sayakpaul/ucf101-subset": "UCF101_subset.tar.gz"}


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """Parquet files of one commit; `root` is `hf://datasets/OWNER/NAME@COMMIT`, `files` are POSIX paths below it."""

    root: str
    files: tuple[str, ...]


def fetch(hub_id: str) -> Path | RemoteFiles:
    """Return parquet files to stream, or the path of a download: the needed archive, else a snapshot.

    Raises:
        UserError: huggingface_hub is not installed, there is no network, no such dataset, or no access.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        raise UserError(
            f"downloading '{hub_id}' needs huggingface_hub ({how_to_install('hub')}); or download it and give its "
            "path as --source"
        ) from error
    where = f"https://huggingface.co/datasets/{hub_id}"
    archive = _ARCHIVES.get(hub_id)
    if archive and isinstance(cached := try_to_load_from_cache(hub_id, archive, repo_type="dataset"), str):
        return Path(cached)
    try:
        info = HfApi().dataset_info(
            hub_id, timeout=10
        )  # one request, so that a missing network is detected immediately
        if archive:
            return Path(hf_hub_download(hub_id, archive, repo_type="dataset"))
        names = [sibling.rfilename for sibling in info.siblings or ()]
        if found := tuple(name for name in names if name.endswith(".parquet")):
            return RemoteFiles(f"{REMOTE}datasets/{hub_id}@{info.sha}", found)
        return Path(snapshot_download(hub_id, repo_type="dataset", revision=info.sha))
    except GatedRepoError as error:
        raise UserError(f"'{hub_id}' is gated: accept its terms at {where} and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise NotFoundError(
            f"there is no folder, archive or public Hub dataset '{hub_id}'; check the spelling, or log in with "
            "`hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(
            f"the Hub refused to serve '{hub_id}' ({type(error).__name__}); try again, or download it from {where} "
            "and give its path as --source"
        ) from error
    except remote_errors() as error:
        raise UserError(
            f"cannot reach the Hub to download '{hub_id}'; check the network, or download it from {where} elsewhere "
            "and give its path as --source"
        ) from error


def open_remote(path: str) -> Any:
    """A seekable file on the Hub; each read requests its byte range, and nothing is stored on disk."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(path, "rb", cache_type="none")


def remote_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the HTTP library that huggingface_hub does not wrap: requests (OSErrors), httpx, now httpx2."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    libraries = [sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules]
    return (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, *libraries)
