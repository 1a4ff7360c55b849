"""A disk that loses power, for code in this process that writes through `os` to one folder.

What is certain after a power loss is what POSIX promises: the content of a file that was flushed by
fsync, and the names in a folder that was flushed. Of all other changes of names any combination may
survive, whatever their order was, and of content that was not flushed only a part. As on file
systems with a journal, a rename never loses the file: its old name is gone only if the new
one is there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# The watched functions of `os`, and the number of paths that each takes.
_WATCHED = {"replace": 2, "link": 2, "unlink": 1, "mkdir": 1, "rmdir": 1, "fsync": 1}


class PowerLoss(BaseException):
    """The power is gone. Nothing that the process does now reaches the disk."""


@dataclass(eq=False)
class Change:
    """A name that was made or, if `node` is None, removed. It survives only if `needs` does."""

    name: str
    node: Node | None
    needs: Change | None = None
    flushed: bool = False
    survives: bool = False


@dataclass(eq=False)
class Node:
    """A file or a folder. content: of a file, what is left of it; names: of a folder, right now."""

    is_folder: bool
    content: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def add(self, name: str, node: Node) -> Change:
        self.names[name] = node
        self.changes.append(Change(name, node))
        return self.changes[-1]

    def take(self, name: str, needs: Change | None = None) -> Node:
        self.changes.append(Change(name, None, needs))
        return self.names.pop(name)


class Disk:
    """Follows what happens to a folder. Everything that is in it at first is flushed.

    Attributes:
        calls: How many calls have changed or flushed anything.
        fail: Called before each of these calls with its number; may raise.
    """

    def __init__(self, root: Path, fail: Callable[[int], None] = lambda call: None) -> None:
        self.root, self.fail, self.calls, self._off = root, fail, 0, False
        self._top = Node(is_folder=True)
        self._discover()
        for folder in self._folders():
            for change in folder.changes:
                change.flushed = True
        for path, node in self._files():
            node.content = path.read_bytes()

    @contextmanager
    def watch(self) -> Iterator[Disk]:
        """Follow the calls in this block."""
        with pytest.MonkeyPatch.context() as patch:
            for name, paths in _WATCHED.items():
                patch.setattr(os, name, self._watched(name, paths, getattr(os, name)))
            yield self
        self._off = True

    def _watched(self, name: str, count: int, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            paths = [self._key(argument) for argument in arguments[:count]]
            if self._off or None in paths:
                return call(*arguments, **options)
            self._discover()
            self.calls += 1
            try:
                self.fail(self.calls)
            except PowerLoss:
                self._off = True
                raise
            found = call(*arguments, **options)
            getattr(self, f"_{name}")(*paths)
            return found

        return watched

    def _key(self, what: Any) -> tuple[str, ...] | None:
        """The parts of a path below the root; None if it lies elsewhere."""
        path = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
        path = path.absolute()
        return path.relative_to(self.root).parts if path.is_relative_to(self.root) else None

    def _node(self, key: tuple[str, ...]) -> Node:
        node = self._top
        for name in key:
            node = node.names[name]
        return node

    def _replace(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        source, target = self._node(old[:-1]), self._node(new[:-1])
        node = source.names[old[-1]]
        if target.names.get(new[-1]) is not node:  # Two names of one file are both left.
            source.take(old[-1], target.add(new[-1], node))

    def _link(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        self._node(new[:-1]).add(new[-1], self._node(old))

    def _unlink(self, key: tuple[str, ...]) -> None:
        self._node(key[:-1]).take(key[-1])

    _rmdir = _unlink

    def _mkdir(self, key: tuple[str, ...]) -> None:
        self._node(key[:-1]).add(key[-1], Node(is_folder=True))

    def _fsync(self, key: tuple[str, ...]) -> None:
        node = self._node(key)
        if not node.is_folder:
            node.content = self.root.joinpath(*key).read_bytes()
        for change in node.changes:
            change.flushed = True
            if change.needs is not None:
                change.needs.flushed = True

    def _discover(self) -> None:
        """Note files that were made by calls which are not watched."""
        for folder, _, names in os.walk(self.root):
            node = self._node(Path(folder).relative_to(self.root).parts)
            for below in os.listdir(folder):
                if below not in node.names:
                    content = Path(folder, below).read_bytes() if below in names else b""
                    node.add(below, Node(below not in names, content[: len(content) // 2]))

    def _folders(self) -> Iterator[Node]:
        queue = [self._top]
        while queue:
            node = queue.pop()
            yield node
            below = (change.node for change in node.changes if change.node is not None)
            queue += [child for child in below if child.is_folder]

    def _files(self) -> Iterator[tuple[Path, Node]]:
        for folder, _, names in os.walk(self.root):
            node = self._node(Path(folder).relative_to(self.root).parts)
            yield from ((Path(folder, name), node.names[name]) for name in names)

    def survivors(self, target: Path, share: float, draw: random.Random) -> None:
        """Write what is left after a power loss.

        Args:
            target: A new folder.
            share: The probability that a change of a name survives that was not flushed.
            draw: Draws which ones do.
        """
        changes = [change for folder in self._folders() for change in folder.changes]
        for change in changes:
            change.survives = change.flushed or draw.random() < share
        for change in changes:
            needs = change.needs
            change.survives &= needs is None or needs.survives
        written: dict[Node, Path] = {}

        def write(node: Node, path: Path) -> None:
            if not node.is_folder:
                if node in written:
                    os.link(written[node], path)
                    return
                written[node] = path
                path.write_bytes(node.content)
                return
            path.mkdir()
            names: dict[str, Node | None] = {}
            for change in node.changes:
                if change.survives:
                    names[change.name] = change.node
            for name, child in names.items():
                if child is not None:
                    write(child, path / name)

        write(self._top, target)
