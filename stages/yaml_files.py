"""Read YAML that others wrote: settings, datasets, models, benchmarks and sets of directions.

A small text may stand for much: aliases repeat what they name, brackets nest, numbers have any
length. Size, depth and number of values are bounded while the text is read, with aliases counted as
often as they are used, and everything that PyYAML raises becomes one class of error.
"""

from __future__ import annotations

import reprlib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from dhr_batch.stages.registry import InvalidInput

# Far above the largest files of this project: 90 kB, some thousand values, a depth of seven.
MOST_BYTES = 2**20
MOST_VALUES = 50_000
MOST_DEPTH = 64
MOST_DIGITS = 100

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple = 3, 6, 6, 6
_repr.maxstring = _repr.maxother = 80


class InvalidYaml(InvalidInput):
    """A file or text is not YAML that can be read. The reason is one line."""


class _Unbounded(yaml.YAMLError):
    """The text stands for more than settings need."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader for plain values, with bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._values, self._length = 0, 0, 0
        # The number of values and characters of each node that has been read to its end.
        self._sizes: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        before = self._values, self._length
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _Unbounded(f"it is nested deeper than {MOST_DEPTH} levels")
        repeats = self.check_event(yaml.AliasEvent)
        event = self.peek_event()
        node = super().compose_node(parent, index)
        if repeats and id(node) not in self._sizes:
            raise _Unbounded(f"the value &{event.anchor} contains itself")
        text = getattr(event, "value", "")
        if not repeats and not _is_text(text):
            raise _Unbounded("a text has the character NUL or half of a surrogate pair")
        values, length = self._sizes[id(node)] if repeats else (1, len(text))
        self._values += values
        self._length += length
        if self._values > MOST_VALUES or self._length > MOST_BYTES:
            raise _Unbounded(
                f"with its aliases written out, it has more than {MOST_VALUES} values or "
                f"{MOST_BYTES} characters"
            )
        self._sizes[id(node)] = self._values - before[0], self._length - before[1]
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                # The first value would be lost without a word.
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {shown(key.value)} is given twice (line {line})")
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return node

    def _number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > MOST_DIGITS:
            raise _Unbounded(f"a number has more than {MOST_DIGITS} digits")
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


def _is_text(value: str) -> bool:
    """Whether files and messages can have a text."""
    return "\0" not in value and value == value.encode("utf-8", "replace").decode("utf-8")


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader._number)


def parse(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        InvalidYaml: It is not YAML, or stands for more than settings need.

    Example:
        >>> parse("{steps: 20, name: w}")
        {'steps': 20, 'name': 'w'}
    """
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except Exception as error:
        # PyYAML lets ValueError, KeyError, AttributeError and others of its constructors through.
        raise InvalidYaml(f"it is not valid YAML: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    text = getattr(error, "problem", None) or str(error) or type(error).__name__
    if not isinstance(error, yaml.YAMLError):
        text = f"a value cannot be built ({text})"
    return " ".join(text.split()) + place


def read(file: Path | Traversable) -> Any:
    """Return the value of a YAML file, which must be UTF-8.

    Raises:
        InvalidYaml: It is not such a file. The reason and the remedy do not name the file.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InvalidYaml(f"it is longer than {MOST_BYTES} bytes", "give a file with settings only")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidYaml("it is not UTF-8 text", "save the file as UTF-8") from error
    try:
        return parse(text)
    except InvalidYaml as error:
        raise InvalidYaml(error.reason, "correct the file") from error.__cause__


def in_folder(folder: Path) -> list[Path]:
    """Return the YAML files in a folder by name.

    Hidden ones, which systems leave there, and pipes, which would be waited for, are left out.
    """
    found = sorted(folder.glob("*.yaml"))
    return [file for file in found if not (file.name.startswith(".") or file.is_fifo())]


def shown(value: Any) -> str:
    """Return a value from outside for a message: shortened, on one line, without control codes.

    Example:
        >>> shown([1, 2]), shown(list(range(100)))
        ('[1, 2]', '[0, 1, 2, 3, 4, 5, ...]')
    """
    return _repr.repr(value)
