"""What this program may overwrite and delete: only what it can show to be its own.

A command writes into a place that does not exist, is empty, or carries the marker that this program
wrote there. The marker also lists the files that nothing else vouches for, with their checksums: it
is written before the file, so that a kill in between leaves a file that is still known. (Parts of
tables are named by the manifests of a run, pictures of `render` by their own metadata.) A file that
has another content was put there by somebody else. It is never overwritten or deleted, but named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from typing import Any

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.base import Storage, Version
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.locations import is_url, lies_in

RUN, EXPORT, BENCHMARK, REPORT = "run", "export", "benchmark", "report"
SYNTHETIC = "synthetic dataset"
_MADE_BY = "dhr-batch"
_NAMED = 5


class Owned:
    """The files of this program in a place.

    kind: what the place is; a marker of another kind counts as none. refused: files that `write`
    has left alone, as they are not of this program. is_free: nothing has the name of the marker.
    """

    def __init__(self, storage: Storage, kind: str) -> None:
        self.storage, self.kind = storage, kind
        self.key = "_state/owner.json" if kind == RUN else ".dhr-batch.json"
        self.refused: list[str] = []
        self._version: Version | None = None
        self._marker: dict[str, Any] | None = None
        self._read()

    def _read(self) -> None:
        there = self.storage.get(self.key)
        self._version = there.version if there else None
        self._marker = _parse(there.content) if there else None
        self.is_free = there is None

    @property
    def kind_there(self) -> str | None:
        """The kind of the place by its marker; None where there is no marker of this program."""
        return self._marker["kind"] if self._marker else None

    @property
    def about(self) -> dict[str, Any]:
        """What the command has noted of the place beside its files."""
        found = self._marker if self.kind_there == self.kind else None
        return (found or {}).get("about", {})

    @property
    def unlisted(self) -> bool:
        """Whether the place is a run of a version that wrote no marker."""
        return self.kind_there is None or bool(self.about.get("unlisted"))

    @property
    def files(self) -> dict[str, list[str]]:
        """The checksums that each file may have."""
        found = self._marker if self.kind_there == self.kind else None
        return (found or {}).get("files", {})

    def check(self) -> None:
        """Raises Refused where the place holds something else. Writes nothing."""
        if self.kind_there == self.kind:
            return
        if self.kind_there:
            what = f"a {self.kind_there} that {_MADE_BY} made"
        elif not self.is_free:
            what = f"{self.key}, which {_MADE_BY} did not write"
        elif self.kind == RUN and _is_run(self.storage):
            return
        elif found := self.storage.entries():
            what = f"files that {_MADE_BY} did not write: {listed(found)}"
        else:
            return
        raise Refused(
            f"{self.storage.place} cannot take the {self.kind}, as it holds {what}. Choose "
            "another place with --out: one that does not exist, or is empty"
        )

    def claim(self, **about: Any) -> None:
        """Mark the place. about: what is noted of it. Raises Refused as `check` does."""
        self.check()
        if self.kind == RUN and self.is_free and _is_run(self.storage):
            about["unlisted"] = True
        if self.kind_there != self.kind or self.about != self.about | about:
            self._change(self.files, self.about | about)
        crash.at("after-claim")

    def foreign(self, keys: Iterable[str]) -> list[str]:
        """Those of the files that exist and are not of this program."""
        sums = {key: self._checksum(key) for key in keys}
        return [key for key, found in sums.items() if found not in (None, *self.files.get(key, ()))]

    def write(self, key: str, content: bytes) -> bool:
        """Write a file; False, and nothing is changed, where somebody else's has its name."""
        there, wanted = self.storage.get(key), _sum(content)
        before = _sum(there.content) if there else None
        if not self._note(key, wanted, before):
            return False
        version = there.version if there else None
        # On the condition that it is still what was looked at.
        if before != wanted and self.storage.swap(key, content, version) is None:
            self.refused.append(key)
            return False
        return True

    def note(self, key: str, checksum: str) -> bool:
        """Take down that a file is about to be written; False where somebody else's is there."""
        return self._note(key, checksum, self._checksum(key))

    def _note(self, key: str, checksum: str, before: str | None) -> bool:
        if before not in (None, checksum, *self.files.get(key, ())):
            self.refused.append(key)
            return False
        wanted = sorted({checksum, before or checksum})
        if self.files.get(key) != wanted:
            self._change(self.files | {key: wanted}, self.about)
        return True

    def keep(self, files: dict[str, list[str]]) -> None:
        """Make these the files of the place."""
        self._change(files, self.about)

    def forget(self, keys: Collection[str]) -> None:
        """Take files off the list, as they are deleted."""
        left = {key: sums for key, sums in self.files.items() if key not in keys}
        if left != self.files:
            self._change(left, self.about)

    def require(self) -> None:
        """Raises Refused where `write` or `note` has left a file alone."""
        if self.refused:
            raise Refused(
                f"{listed([self.storage.locate(key) for key in self.refused])}: not written, as "
                f"{_MADE_BY} did not write the file that is there, or it was changed since. Move "
                "it away and give the same command again, or choose another place with --out"
            )

    def _checksum(self, key: str) -> str | None:
        """None where there is no such file; "" for what is no file, which nothing is equal to."""
        try:
            if isinstance(self.storage, LocalStorage):
                with (self.storage.root / key).open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            content = self.storage.read(key)
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError):
            return ""
        return None if content is None else _sum(content)

    def _change(self, files: dict[str, list[str]], about: dict[str, Any]) -> None:
        """Write the marker. What another command has noted meanwhile is kept."""
        while True:
            if self.kind_there != self.kind and not self.is_free:
                self.check()
            marker = {"made_by": _MADE_BY, "kind": self.kind, "schema": 1, "about": about}
            marker["files"] = files
            content = json.dumps(marker, ensure_ascii=False, indent=1).encode()
            version = self.storage.swap(self.key, content, self._version)
            if version is not None:
                self._version, self._marker, self.is_free = version, marker, False
                return
            before = self.files
            self._read()
            files = {key: s for key, s in self.files.items() if before.get(key) != s} | files


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parse(content: bytes) -> dict[str, Any] | None:
    """A marker; None for a file that is none."""
    try:
        found = json.loads(content)
        ours = found["made_by"] == _MADE_BY and isinstance(found["kind"], str)
        return found if ours and isinstance(found["files"], dict) else None
    except (ValueError, LookupError, TypeError):
        return None


def _is_run(storage: Storage) -> bool:
    """Whether a place without a marker is a run of a version that wrote none."""
    content = storage.read("plan.json")
    try:
        plan = json.loads(content or b"")
        return {"schema", "config", "fingerprint", "shards"} <= plan.keys()
    except (ValueError, AttributeError):
        return False


def listed(names: Collection[str]) -> str:
    """The first few of some names."""
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def require_apart(out: Storage, inputs: Iterable[str]) -> None:
    """Raises Refused where an output lies in one of the inputs of a command, or one in it.

    What is written into a folder of photographs would be taken for photographs, and deleting an
    output that holds them would delete them.
    """
    for place in inputs:
        require_outside(out, [place])
        if lies_in(real(place), real(out.address)):
            raise Refused(
                f"the dataset {place} lies in {out.place}, so that its files would be among those "
                "that are written: choose a place that does not hold it with --out"
            )


def require_outside(out: Storage, inputs: Iterable[str]) -> None:
    """Raises Refused where an output lies in one of the inputs of a command."""
    for place in inputs:
        if lies_in(real(out.address), real(place)):
            raise Refused(
                f"{out.place} lies in the dataset {place}, where the files that are written would "
                "be taken for photographs: choose a place outside of it with --out"
            )


def real(place: str) -> str:
    """A place by the one name it has: without links, or with the scheme that others have too."""
    place = place.removeprefix("file://")
    if not is_url(place):
        return os.path.realpath(os.path.expanduser(place))
    scheme, _, rest = place.partition("://")
    parts = [part for part in rest.split("/") if part]
    return f"{'s3' if scheme == 's3a' else scheme}://{'/'.join(parts)}"
