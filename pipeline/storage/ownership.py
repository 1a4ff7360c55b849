"""Ownership of files: dhr-batch overwrites and deletes only files that it has written itself.

A command writes only to a place that does not exist, is empty, or contains a marker that dhr-batch
has written there. The marker lists files with their checksums. It is updated before a file is
written, so that a file is listed even if the process is killed in between. (Files of tables are
listed in the manifests of a run instead, and pictures of `render` are recognized by their
metadata.) A file with another checksum was written by someone else: it is reported, but never
overwritten or deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from typing import Any

from dhr_batch.pipeline import crash, sealed
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.printable import first_names
from dhr_batch.pipeline.storage.base import Storage, Version
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.locations import is_url, lies_in

RUN, EXPORT, BENCHMARK, REPORT = "run", "export", "benchmark", "report"
SYNTHETIC = "synthetic dataset"
_MADE_BY = "dhr-batch"


class Owned:
    """The files in a place that dhr-batch has written.

    Attributes:
        kind: What the place is used for. The lists of a marker of another kind are ignored.
        key: The key of the marker.
        refused: Files that `write` and `note` have not replaced, as someone else has written them.
        is_free: Whether no file has the name of the marker.
    """

    def __init__(self, storage: Storage, kind: str) -> None:
        self.storage, self.kind = storage, kind
        self.key = "_state/owner.json" if kind == RUN else ".dhr-batch.json"
        self.refused: list[str] = []
        self._version: Version | None = None
        self._marker: dict[str, Any] | None = None
        self._read()

    def _read(self) -> None:
        found = self.storage.get(self.key)
        self._version = found.version if found else None
        self._marker = _parse(found.content) if found else None
        self.is_free = found is None

    @property
    def found_kind(self) -> str | None:
        """The kind according to the marker; None if there is no marker of dhr-batch."""
        return self._marker["kind"] if self._marker else None

    @property
    def about(self) -> dict[str, Any]:
        """Facts about the place that a command has stored in the marker."""
        found = self._marker if self.found_kind == self.kind else None
        return (found or {}).get("about", {})

    @property
    def unlisted(self) -> bool:
        """Whether the place is a run of an older version, which wrote no marker."""
        return self.found_kind is None or bool(self.about.get("unlisted"))

    @property
    def files(self) -> dict[str, list[str]]:
        """The possible checksums of each listed file."""
        found = self._marker if self.found_kind == self.kind else None
        return (found or {}).get("files", {})

    def check(self) -> None:
        """Check that a command may write to the place. Nothing is written.

        Raises:
            Refused: If the place contains anything else.
        """
        if self.found_kind == self.kind:
            return
        if self.found_kind:
            what = f"a {self.found_kind} of {_MADE_BY}"
        elif not self.is_free:
            what = f"{self.key}, which {_MADE_BY} did not write"
        elif self.kind == RUN and _is_run(self.storage):
            return
        elif found := self.storage.entries():
            what = f"files that {_MADE_BY} did not write: {listed(found)}"
        else:
            return
        raise Refused(
            self.storage.place,
            f"the {self.kind} cannot be written there, because it contains {what}",
            "choose another place with --out that does not exist or is empty",
        )

    def claim(self, **about: Any) -> None:
        """Write the marker.

        Args:
            **about: Facts to store in it.

        Raises:
            Refused: If the place contains anything else.
        """
        self.check()
        if self.found_kind != self.kind or self.about != self.about | about:
            self._change(self.files, self.about | about)
        crash.at("after-claim")

    def foreign(self, keys: Iterable[str]) -> list[str]:
        """Return those of the files that exist and were not written by dhr-batch."""
        sums = {key: self._checksum(key) for key in keys}
        return [key for key, found in sums.items() if found not in (None, *self.files.get(key, ()))]

    def write(self, key: str, content: bytes) -> bool:
        """Write a file and list it. Returns False if the existing file is someone else's."""
        found, after = self.storage.get(key), _sum(content)
        before = _sum(found.content) if found else None
        if not self._note(key, after, before):
            return False
        version = found.version if found else None
        # The version ensures that the file has not changed since it was read.
        if before != after and self.storage.swap(key, content, version) is None:
            self.refused.append(key)
            return False
        return True

    def note(self, key: str, checksum: str) -> bool:
        """List a file before it is written. Returns False if the existing file is someone else's.

        Args:
            key: The file.
            checksum: The sha256 of its new content.
        """
        return self._note(key, checksum, self._checksum(key))

    def _note(self, key: str, after: str, before: str | None) -> bool:
        if before not in (None, after, *self.files.get(key, ())):
            self.refused.append(key)
            return False
        possible = sorted({after, before or after})
        if self.files.get(key) != possible:
            self._change(self.files | {key: possible}, self.about)
        return True

    def keep(self, files: dict[str, list[str]]) -> None:
        """Replace the list of files: their names and possible checksums."""
        self._change(files, self.about)

    def forget(self, keys: Collection[str]) -> None:
        """Remove deleted files from the list."""
        remaining = {key: sums for key, sums in self.files.items() if key not in keys}
        if remaining != self.files:
            self._change(remaining, self.about)

    def require(self) -> None:
        """Raise Refused if `write` or `note` has refused a file."""
        if self.refused:
            raise Refused(
                listed([self.storage.locate(key) for key in self.refused]),
                f"it is not replaced, because {_MADE_BY} did not write it, or it has been changed",
                "move it away and give the same command again, or choose another place with --out",
            )

    def _checksum(self, key: str) -> str | None:
        """Return the sha256 of a file; None if it does not exist, "" if it is not a file."""
        try:
            if isinstance(self.storage, LocalStorage):
                return sha256(self.storage.root / key)
            content = self.storage.read(key)
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError):
            return ""
        return None if content is None else _sum(content)

    def _change(self, files: dict[str, list[str]], about: dict[str, Any]) -> None:
        """Write the marker. Files that another command has listed in the meantime are kept."""
        if self.kind == RUN and self.is_free and _is_run(self.storage):
            about = about | {"unlisted": True}
        while True:
            if self.found_kind != self.kind and not self.is_free:
                self.check()
            marker = {"made_by": _MADE_BY, "kind": self.kind, "schema": 1, "about": about}
            marker["files"] = files
            content = sealed.dumps(marker)
            version = self.storage.swap(self.key, content, self._version)
            if version is not None:
                self._version, self._marker, self.is_free = version, marker, False
                return
            before = self.files
            self._read()
            if self.is_free:
                raise Refused(self.storage.locate(self.key), "it is not a file", "move it away")
            files = {key: s for key, s in self.files.items() if before.get(key) != s} | files


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parse(content: bytes) -> dict[str, Any] | None:
    """Parse a marker. Returns None for any other file.

    A marker that does not match its checksum is read all the same: if the name or the checksum of a
    file is damaged in it, that file counts as someone else's, and `verify` reports the marker.
    """
    try:
        with sealed.damage():
            found = json.loads(content)
        ours = found["made_by"] == _MADE_BY and isinstance(found["kind"], str)
        return found if ours and isinstance(found["files"], dict) else None
    except (ValueError, LookupError, TypeError):
        return None


def _is_run(storage: Storage) -> bool:
    """Whether a place without a marker is a run of an older version, which wrote no marker."""
    content = storage.read("plan.json")
    try:
        with sealed.damage():
            plan = json.loads(content or b"")
        return {"schema", "config", "fingerprint", "shards"} <= plan.keys()
    except (ValueError, AttributeError):
        return False


def listed(names: Collection[str]) -> str:
    """Return the first few of sorted names as text, and the number of the others."""
    return first_names(sorted(names))


def require_apart(out: Storage, inputs: Iterable[str]) -> None:
    """Check that the output of a command neither lies in one of its inputs nor contains one.

    Pictures that are written to a dataset would become images of it, and a dataset inside of an
    output could be deleted together with it.

    Raises:
        Refused: If one lies in the other.
    """
    for place in inputs:
        require_outside(out, [place])
        if lies_in(real(place), real(out.address)):
            raise Refused(
                f"the dataset {place}",
                f"it lies in {out.place}, to which the files would be written",
                "choose a place that does not contain it with --out",
            )


def require_outside(out: Storage, inputs: Iterable[str]) -> None:
    """Check that the output of a command does not lie in one of its inputs.

    Raises:
        Refused: If it does.
    """
    for place in inputs:
        if lies_in(real(out.address), real(place)):
            raise Refused(
                out.place,
                f"it lies in the dataset {place}, where the files that are written would be taken "
                "for photographs",
                "choose a place outside of it with --out",
            )


def real(place: str) -> str:
    """Return the canonical form of a location, without symbolic links, scheme aliases or `//`."""
    place = place.removeprefix("file://")
    if not is_url(place):
        return os.path.realpath(os.path.expanduser(place))
    scheme, _, rest = place.partition("://")
    parts = [part for part in rest.split("/") if part]
    return f"{'s3' if scheme == 's3a' else scheme}://{'/'.join(parts)}"
