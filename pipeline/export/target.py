"""The folder of an export: where it may be, and how an earlier export is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.locations import lies_in
from dhr_batch.pipeline.storage.ownership import EXPORT, Owned, listed, require_apart

_MARKER = ".dhr-batch.json"
# The files of an unfinished export, one JSON string a line. Written before each of them.
_LIST = ".dhr-batch.files"
# What a command that is killed while it writes the marker leaves.
_TEMPORARY = re.compile(rf"\.{re.escape(_MARKER)}\.[0-9a-f]{{8}}")


def new_file(folder: Path, name: str) -> Path:
    """Return the path of a file that an unfinished export is about to write.

    The name is listed first. After a kill, the list shows that the file belongs to the export.
    """
    with (folder / _LIST).open("a", encoding="utf-8") as file:
        file.write(json.dumps(name) + "\n")
    return folder / name


def resolved(out: Path, run: Run, fresh: bool) -> Path:
    """Return the absolute path of the folder.

    Raises:
        Refused: If the folder contains anything that an export of this run may not replace.
    """
    place = connect(out)
    out = Path(place.address)
    if Path.cwd().is_relative_to(out):
        raise Refused(
            str(out), "it is or contains the current folder", "choose a folder in it with --out"
        )
    if lies_in(str(out), run.storage.address):
        raise Refused(
            str(out),
            "it lies in the run, which may only contain its tables",
            "choose another --out",
        )
    require_apart(place, origin.inputs(run.storage, run.stored))
    owned = Owned(place, EXPORT)
    if owned.about.get("run") == identity(run.stored):
        if not fresh:
            raise Refused(str(out), "it contains an export of this run", "replace it with --fresh")
    elif found := place.entries() or ([] if owned.is_free else [_MARKER]):
        raise Refused(
            str(out),
            f"it contains other files than an export of this run ({listed(found)})",
            "choose another --out",
        )
    return out


@contextmanager
def partial(out: Path) -> Iterator[Path]:
    """Provide an empty temporary folder beside `out`, and delete it after the block.

    The remains of a killed export are deleted first.

    Raises:
        Refused: If a folder of this name was not written by an export.
    """
    folder = out.parent / f".{out.name}.partial"
    _require_export(_old(out))
    _discard(folder)
    owned = Owned(connect(folder), EXPORT)
    owned.claim()
    try:
        yield folder
    finally:
        _discard(folder)


def _discard(folder: Path) -> None:
    """Delete the folder of an unfinished export, file by file."""
    if not folder.exists():
        return
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
    if folder.is_dir() and any(folder.iterdir()):
        _require_export(folder)
        LocalStorage(folder).remove(list(_written(folder)))
        if left := sorted(_files(folder)):
            raise Refused(
                str(folder),
                f"it is needed for an unfinished export, and contains other files ({listed(left)})",
                "move them to another folder",
            )
        (folder / _MARKER).unlink(missing_ok=True)
        LocalStorage(folder).prune()
    if folder.exists():
        folder.rmdir()


def _written(folder: Path) -> Iterator[str]:
    """Yield the names of the files that an export has written to its temporary folder."""
    # The marker names them if the export was killed after they were complete, see `place`.
    owned = Owned(connect(folder), EXPORT)
    foreign = owned.foreign(owned.files)
    yield from (name for name in owned.files if name not in foreign)
    if (unfinished := folder / _LIST).exists():
        lines = unfinished.read_text("utf-8").splitlines(keepends=True)
        # The last line may be incomplete, and its file was not written then.
        yield from (json.loads(line) for line in lines if line.endswith("\n"))
        yield _LIST


def place(partial: Path, out: Path, run: Run) -> list[str]:
    """Move a finished export to its folder, in place of an earlier export.

    The folder is replaced as a whole, unless it contains files that were not written by an export.
    Those stay in it, and the files of the export are replaced one by one.

    Args:
        partial: The folder of the finished export.
        out: Its final folder.
        run: The run that was exported.

    Returns:
        The names of the files that were not written by an export.

    Raises:
        Refused: If such a file has the name of a file of the export.
    """
    new = {name: [sha256(partial / name)] for name in _files(partial)}
    earlier = Owned(connect(out), EXPORT)
    stay = [name for name in _files(out) if name not in earlier.files]
    stay += earlier.foreign(earlier.files)
    if taken := _taken(new, stay):
        raise Refused(
            str(out),
            "these files would be replaced, but no export wrote them, or they have been changed: "
            f"{listed(taken)}",
            "move them away, or choose another --out",
        )
    about = {"run": identity(run.stored)}
    if stay:
        # If the process is killed from here on, files of both exports are left, and all are listed.
        earlier.claim(**about)
        known = set(earlier.files) - set(stay)
        old = {name: earlier.files[name] for name in known}
        earlier.keep({n: [*old.get(n, ()), *new.get(n, ())] for n in old | new})
        earlier.storage.remove(known)
        LocalStorage(out).prune()
        for name in new:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, out / name)
        for folder in filter(Path.is_dir, sorted(partial.rglob("*"))):
            (out / folder.relative_to(partial)).mkdir(parents=True, exist_ok=True)
        earlier.keep(new)
        return sorted(stay)
    owned = Owned(connect(partial), EXPORT)
    owned.keep(new)
    owned.claim(**about)
    (partial / _LIST).unlink(missing_ok=True)
    _swap(partial, out)
    return []


def _swap(partial: Path, out: Path) -> None:
    """Replace a folder. A kill between the two moves leaves the old one under a temporary name."""
    old = _old(out)
    _delete(old)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    _delete(old)


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def _require_export(folder: Path) -> None:
    """Raise Refused if a folder with a temporary name was not written by an export."""
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and Owned(connect(folder), EXPORT).found_kind != EXPORT:
        raise Refused(
            str(folder),
            "it is needed as a temporary folder, but it was not written by an export",
            "move it away, or choose another --out",
        )


def _delete(folder: Path) -> None:
    """Delete an earlier export, file by file."""
    if not folder.exists():
        return
    owned = Owned(connect(folder), EXPORT)
    others = owned.foreign(owned.files)
    owned.storage.remove([name for name in owned.files if name not in others])
    if not list(_files(folder)):
        shutil.rmtree(folder)


def _files(folder: Path) -> Iterator[str]:
    """Iterate over the names of all files below a folder, hidden ones too, except the marker."""
    for top, _, names in os.walk(folder):
        for name in names:
            found = Path(top, name).relative_to(folder).as_posix()
            if found not in (_MARKER, _LIST) and not _TEMPORARY.fullmatch(found):
                yield found


def _taken(new: Iterable[str], stay: Iterable[str]) -> set[str]:
    """Return the files in `stay` that have the name of a new file, or of a folder of one."""
    folders = {str(parent) for name in new for parent in Path(name).parents}
    inside = {name for name in stay if any(str(p) in set(new) for p in Path(name).parents)}
    return inside | {name for name in stay if name in set(new) | folders}


def identity(plan: StoredPlan) -> str:
    """Return a checksum that identifies a run, and that `--extend` does not change."""
    kept = json.dumps([plan.dataset, plan.fingerprint.to_json()], sort_keys=True)
    return hashlib.sha256(kept.encode()).hexdigest()[:16]
