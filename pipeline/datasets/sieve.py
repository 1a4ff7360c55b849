"""What a listing leaves out: hidden and excluded files, folders of systems and of dhr-batch."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter

from dhr_batch.pipeline.datasets.items import Rules

# Folders in which servers and systems keep thumbnails, snapshots, and deleted or rescued files.
# Those with a dot in front, such as `.Trash-1000` and `.@__thumb`, are hidden.
SYSTEM = frozenset(
    {
        "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "@__thumb", "#recycle",
        "#snapshot", "~snapshot", "$recycle.bin", "recycler", "recycled", "lost+found",
        "system volume information", "__macosx", "network trash folder", "temporary items",
        "trashbox", "files_trashbin", "files_versions",
    }
)  # fmt: skip
# Files that a check of a disk has rescued, and previews that programs for photographs keep.
_OTHERS = re.compile(
    r"(.*/)?(found\.\d{3}|appdata_\w+/preview"
    r"|[^/]+\.photos?library/(resources|database|thumbnails|previews))",
    re.IGNORECASE,
)
_MARKER, _PLAN, _STATE = ".dhr-batch.json", "plan.json", "_state"
UNREADABLE = "unreadable"
# At most so many parts that cannot be read are named.
_NAMED = 20


class Sieve:
    """Decides from which files of a folder, store or archive images are taken.

    Paths are those below the root. A folder that is left out is counted once, and not the files in
    it.

    Args:
        rules: How images are listed.
        ignored: The number of what is left out by its kind, which is completed.
        root: The root if it is a local folder. Its subfolders are searched for markers of
            dhr-batch.
    """

    def __init__(self, rules: Rules, ignored: Counter[str], root: str = "") -> None:
        self.ignored = ignored
        self._recursive, self._root = rules.recursive, root.rstrip("/")
        self._globs = [(glob, re.compile(fnmatch.translate(glob))) for glob in rules.exclude]
        self._known: dict[str, bool] = {}
        self._counted: set[str] = set()
        self._ours: set[str] = set()

    def enters(self, folder: str) -> bool:
        """Whether images are taken from a folder."""
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = self._enters(folder)
        return known

    def _enters(self, folder: str) -> bool:
        end = 0 if folder else -1
        while end >= 0:
            end = folder.find("/", end + 1)
            path = folder if end < 0 else folder[:end]
            if reason := self._reason(path) or self._reason_of_folder(path):
                if path not in self._counted:
                    self._counted.add(path)
                    self.ignored[reason] += 1
                return False
        return True

    def takes(self, file: str) -> bool:
        """Whether a file is not left out, whatever its extension."""
        if not self.enters(file.rpartition("/")[0]):
            return False
        if reason := self._reason(file):
            self.ignored[reason] += 1
        return not reason

    def _reason(self, path: str) -> str:
        name = path.rpartition("/")[2]
        if name.startswith("."):
            return "hidden"
        matching = (g for g, pattern in self._globs if pattern.match(path if "/" in g else name))
        return next((f"excluded by {glob}" for glob in matching), "")

    def _reason_of_folder(self, path: str) -> str:
        name = path.rpartition("/")[2]
        if name.casefold() in SYSTEM or _OTHERS.fullmatch(path):
            return f"folder {name}"
        if not self._recursive:
            return "subfolder"
        return "folder written by dhr-batch" if path in self._ours or self._is_marked(path) else ""

    def _is_marked(self, path: str) -> bool:
        if not self._root:
            return False
        folder = f"{self._root}/{path}/"
        if os.path.lexists(folder + _MARKER):
            return True
        return os.path.lexists(folder + _STATE) and os.path.lexists(folder + _PLAN)

    def note(self, file: str) -> None:
        """Note a file of a store or an archive if it marks a folder as written by dhr-batch."""
        folder, _, name = file.rpartition("/")
        if folder.endswith(f"/{_STATE}") and name in ("owner.json", "lease"):
            folder = folder.removesuffix(f"/{_STATE}")
        elif name != _MARKER:
            return
        if folder and folder not in self._ours:
            self._ours.add(folder)
            self._known.clear()

    def lost(self, path: str, why: str) -> None:
        """Count a file or folder that is left out because it cannot be read, and name it."""
        named = sum(kind.startswith(f"{UNREADABLE}: ") for kind in self.ignored)
        self.ignored[f"{UNREADABLE}: {path} ({why})" if named < _NAMED else UNREADABLE] += 1
