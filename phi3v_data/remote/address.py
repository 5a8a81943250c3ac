"""Addresses of folders and objects in a store: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `hf://datasets/OWNER/NAME`.

Options of the command line are paths, and a path has no double slash: `s3:/BUCKET/PREFIX` is the same address.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from phi3v_data.errors import UserError
from phi3v_data.files import unsafe_reason
from phi3v_data.messages import shown

EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hub"}
"""The extra of this package that a protocol needs."""

_ADDRESS = re.compile(rf"({'|'.join(EXTRAS)}):(?:/+(.*))?", re.DOTALL | re.IGNORECASE)
_ANY_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*", re.DOTALL)
_USER = re.compile(r"//[^/\s]*@")
_SECRET = re.compile(r"//(?!arn:)[^/]*:.*", re.DOTALL)  # a secret key may have slashes in it, a bucket no colon
_QUERY = re.compile(r"\?[^\s'\"]*")
_VERSION = re.compile(r"(?i)[?&#](versionid|generation)=")
_SIGNED = re.compile(r"(?i)[?&](x-amz-|x-goog-|awsaccesskeyid|signature|sig=|token)")


@dataclass(frozen=True, slots=True)
class Address:
    """A folder or an object: protocol, and the bucket with the path in it, without slashes at the end."""

    protocol: str
    path: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def __truediv__(self, name: str) -> "Address":
        return Address(self.protocol, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.rpartition("/")[2]


def is_remote(path: str | Path) -> bool:
    """Whether this is an address, in either spelling, and not a local path."""
    return _ADDRESS.fullmatch(os.fspath(path)) is not None


def spelled(path: str | Path) -> str:
    """A local path as it is, an address with its double slash and without its secrets."""
    found = _ADDRESS.fullmatch(text := os.fspath(path))
    return _SECRET.sub("//...", without_secrets(f"{found[1].lower()}://{found[2] or ''}")) if found else text


def parse_address(path: str | Path) -> Address:
    """The address of a folder or an object.

    Raises:
        UserError: it has credentials or a signature in it, no bucket, or a name that is not a plain one.
    """
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found is None:
        raise UserError(f"{path}: not an address such as s3://BUCKET/PREFIX")
    protocol, rest = found[1].lower(), (found[2] or "").rstrip("/")
    if "@" in rest.partition("/")[0] or _SECRET.match(f"//{rest}") or _SIGNED.search(rest):
        raise UserError(
            f"{spelled(path)}: an address with a password or a signature is not read; give the plain address, and let "
            "the store's own settings (environment, profile, login) supply the credentials"
        )
    if _VERSION.search(rest):
        raise UserError(
            f"{spelled(path)}: an address cannot name a version of an object; give it without `?...`: the object as "
            "it is now is read, and a change while it is read is noticed by its etag"
        )
    if not rest:
        raise UserError(f"{protocol}:// names no bucket; give {protocol}://BUCKET/PREFIX")
    if any(part in ("", ".", "..") for part in rest.split("/")) or not rest.isprintable():
        raise UserError(
            f"{shown(f'{protocol}://{rest}')}: not a plain address: it has '..', '//' or a control character"
        )
    return Address("gs" if protocol == "gcs" else protocol, rest)


def refuse_address(path: str | Path, option: str) -> None:
    """Refuse an address where a path on this machine is meant; taken for one, it would be a folder named `s3:`.

    Raises:
        UserError: it is an address, of whatever kind.
    """
    if _ANY_ADDRESS.fullmatch(os.fspath(path)):
        raise UserError(
            f"{option} {spelled(path)}: is an address, and this is written to a file system: give a path, then copy "
            "the result with the store's own tools; of sets, `phi3v-data export` writes to s3:// and gs://"
        )


def without_secrets(text: str) -> str:
    """The text of a message without `user:password@` and without the queries of addresses, which may be signed."""
    return _QUERY.sub("?...", _USER.sub("//...@", text)) if "://" in text else text


def name_below(prefix: str, path: str) -> str | None:
    """The name of an object relative to a prefix; None if it is not one that a file below a folder can have."""
    if not path.startswith(f"{prefix}/"):
        return None
    name = path[len(prefix) + 1 :]
    return None if not name or unsafe_reason(name) else name
