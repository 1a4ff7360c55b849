"""Read pickles without running anything that they name, and with bounds on what they build.

A pickle is a program: its loader imports and calls whatever the file names. This reader imports
nothing. Names that weights need stand for a few functions here, which build plain containers and
tensors. Names of classes and of other records that training scripts keep beside weights stand for
`Inert`, which only holds what it is given. Every other name is an error.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Instructions of a pickle. Checkpoints with the states of optimisers have some 100,000.
MOST_STEPS = 10_000_000
# Numbers of all tensors that repeat a part of their storage, such as `expand` makes them.
MOST_REPEATED = 2**26

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
# Records of the standard library that training scripts keep.
_RECORDS = {
    "argparse": {"Namespace"},
    "builtins": {"bytearray", "complex", "dict", "float", "frozenset", "int", "list", "range"}
    | {"slice", "str", "tuple"},
    "collections": {"Counter", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID"},
}
# Names of Python 2, which pickles below protocol 3 have.
_FORMER = {("__builtin__", "xrange"): ("builtins", "range")}
_FORMER_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PATHS = ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_RECORDS |= {"pathlib": {*_PATHS}, "pathlib._local": {*_PATHS}}


class Forbidden(Exception):
    """A pickle names something that is not in the table."""


class Damaged(ValueError):
    """A pickle builds something that weights do not need."""


class Inert:
    """Placeholder for an object that is not created, with its arguments and state.

    Attributes:
        named: What the pickle calls it.
        own: Whether it belongs to the standard library.
    """

    named = "an object"
    own = False
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments


@cache
def record(module: str, name: str) -> type[Inert]:
    """Return the class of placeholders for a name."""
    about = {"named": f"{module}.{name}", "own": module.partition(".")[0] in _library()}
    return type(name.rpartition(".")[2], (Inert,), about)


@cache
def _library() -> frozenset[str]:
    return sys.stdlib_module_names | {"__builtin__"}


def _is_record(module: str, name: str) -> bool:
    """Whether a name is one of a record: a known one, or a class of another package."""
    if name in _RECORDS.get(module, ()):
        return True
    top = module.partition(".")[0]
    if top in _library() or module.startswith("dnnlib.tflib"):
        return False
    if top == "torch":
        if name.endswith("Storage"):
            return False
        known = isinstance(getattr(torch, name, None), torch.dtype) and module == "torch"
        rebuilt = module == "torch._utils" and name.startswith("_rebuild_")
        if known or rebuilt or (module, name) == ("torch.serialization", "_get_layout"):
            return True
    return top == "numpy" or all(part.lstrip("_")[:1].isupper() for part in name.split("."))


def key(value: Any) -> Any:
    """Return the key of a dictionary. Nested tuples are refused: their hash may take for ever."""
    parts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, (tuple, frozenset)) for part in parts):
        raise Damaged("a key is made of nested tuples")
    return value


class Dict(dict[Any, Any]):
    """A dictionary whose keys are checked."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        for name, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self[key(name)] = value


# Messages name it as what it is.
Dict.__name__ = "dict"


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {key(item) for item in items}


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Forbidden(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


def _first(value: Any, *_: Any) -> Any:
    return value


def _attribute(owner: Any, name: str) -> Inert:
    """Return a placeholder for a member of an enumeration, which Python 3.11 pickles like this."""
    if not (isinstance(owner, type) and issubclass(owner, Inert)) or owner.own:
        raise Forbidden("getattr")
    return owner(name)


# Script classes are in archives that `torch.jit.save` writes.
SCRIPT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Dict,
    ("torch", "device"): record("torch", "device"),
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): list
        for kind in ("int", "double", "bool", "tensor")
    },
}
PLAIN: dict[tuple[str, str], Any] = {
    ("dnnlib.util", "EasyDict"): Dict,
    ("easydict", "EasyDict"): Dict,
    ("collections", "OrderedDict"): Dict,
    ("builtins", "set"): _set,
    ("builtins", "getattr"): _attribute,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): tuple,
    ("torch", "device"): record("torch", "device"),
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): record(
        "torch_utils.persistence", "_reconstruct_persistent_obj"
    ),
}


class Unpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
        source: A file in memory, whose reads end at its end: other files allocate what a damaged
            pickle asks for.
        table: What the names stand for.
        records: Whether other records are read as `Inert`.
    """

    # Of the Python implementation, which type stubs do not describe.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, source: Any, table: dict[tuple[str, str], Any], records: bool) -> None:
        super().__init__(source, encoding="latin1")
        self._table, self._records = table, records
        self._repeated = self._steps = 0

    def find_class(self, module: str, name: str) -> Any:
        module, name = _FORMER.get((module, name), (_FORMER_MODULES.get(module, module), name))
        if (module, name) in self._table:
            return self._table[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in {("torch._utils", f"_rebuild_tensor{end}") for end in ("", "_v2")}:
            return self._tensor
        if (module, name) == ("torch.storage", "_load_from_bytes") and self._records:
            return self.nested
        if self._records and _is_record(module, name):
            return record(module, name)
        raise Forbidden(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """Return the numbers of a storage, a tensor of one axis."""
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise Damaged("it has persistent objects, which only files of torch have")
        kind, dtype, name, _, count, *more = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise Damaged(f"{str(pid)[:80]} is not a storage")
        return self.storage(dtype, key(name), count, *more)

    def storage(self, dtype: torch.dtype, name: Any, count: int, view: Any = None) -> Tensor:
        """Return the numbers of the storage `name`."""
        raise pickle.UnpicklingError("it has persistent objects, which only files of torch have")

    def nested(self, data: bytes) -> Any:
        """Return the content of a file of torch inside of this one."""
        raise Forbidden("torch.storage._load_from_bytes")

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Tensor) or storage.ndim != 1:
            raise Damaged("a tensor is not made of a storage")
        count = 1
        for side in size:
            count *= side
        if count > storage.numel():
            self._repeated += count
        if self._repeated > MOST_REPEATED:
            raise Damaged(
                f"a tensor of shape {list(size)} repeats a storage of {storage.numel()} numbers"
            )
        return storage.as_strided(size, stride, storage.storage_offset() + offset)

    # ------------------------------------------------------------------ instructions

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Damaged(f"its pickle has more than {MOST_STEPS} instructions")

    def _into(self, items: list[Any]) -> None:
        target: Any = self.stack[-1]
        if isinstance(target, dict):
            for name, value in zip(items[::2], items[1::2], strict=True):
                target[key(name)] = value
        elif isinstance(target, set):
            target.update(map(key, items))
        elif isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Damaged(f"it adds items to a {type(target).__name__}")

    def _last(self, count: int) -> list[Any]:
        taken = self.stack[-count:]
        if len(taken) < count:
            raise pickle.UnpicklingError("its stack is empty")
        del self.stack[-count:]
        return taken

    def _build(self) -> None:
        (state,) = self._last(1)
        target: Any = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        # State dicts carry versions of their modules, which nobody needs here.
        elif not isinstance(target, dict):
            raise Damaged(f"it changes a {type(target).__name__}")

    def _frozen(self) -> None:
        self.append(frozenset(map(key, self.pop_mark())))

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.append(Dict(zip(items[::2], items[1::2], strict=True)))


def _counted(function: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(reader: Any) -> None:
        reader._step()
        function(reader)

    return run


_CHANGED: dict[bytes, Callable[[Any], None]] = {
    pickle.BUILD: Unpickler._build,
    pickle.SETITEM: lambda reader: reader._into(reader._last(2)),
    pickle.APPEND: lambda reader: reader._into(reader._last(1)),
    pickle.FROZENSET: Unpickler._frozen,
    pickle.DICT: Unpickler._dictionary,
    **{
        code: lambda reader: reader._into(reader.pop_mark())
        for code in (pickle.SETITEMS, pickle.APPENDS, pickle.ADDITEMS)
    },
}
Unpickler.dispatch = {
    code: _counted(function)
    for code, function in (
        pickle._Unpickler.dispatch | {code[0]: f for code, f in _CHANGED.items()}
    ).items()
}
