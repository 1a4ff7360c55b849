"""What is to be made of each photograph: the edits, the sweeps and the faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any, TypeVar

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.syntax import Terms

Parsed = TypeVar("Parsed")
# One edit as a text, such as `smile=2`, or the strength of each direction.
Edits = str | Iterable[str] | Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The pictures to make of each photograph.

    Attributes:
        edits: The terms of each picture. Without any, and without sweeps, the edits of the settings
            are made.
        sweeps: The pictures of each sweep, in its order.
    """

    edits: tuple[Terms, ...] = ()
    sweeps: tuple[tuple[Terms, ...], ...] = ()

    @classmethod
    def of(cls, edits: Edits = (), sweeps: str | Iterable[str] = ()) -> Choice:
        """Return the choice of texts.

        Args:
            edits: Texts such as `smile=2`, `smile=-1,1` or `smile=1+age=10`, or the strength of
                each direction, which gives a picture of its own.
            sweeps: Texts such as `smile=-2:2:9`.

        Raises:
            Refused: A text has another form, or a strength is not a finite number.
        """
        if isinstance(edits, Mapping):
            for name, strength in edits.items():
                if not (isinstance(strength, Real) and math.isfinite(strength)):
                    what = f"the strength {strength!r} of the edit {name!r}"
                    raise Refused(
                        what, "it is not a finite number", 'give for instance {"smile": 2}'
                    )
            edits = [str(syntax.Term(name, strength)) for name, strength in edits.items()]
        texts = _texts(edits, "edits")
        pictures = chain.from_iterable(parsed("--edit", text, syntax.parse_all) for text in texts)
        chosen = tuple(dict.fromkeys(pictures))
        return cls(chosen, tuple(_sweep(text) for text in _texts(sweeps, "sweep")))

    def settings(self) -> dict[str, Any]:
        """Return the settings of the stage `edit`; empty if they are not changed."""
        pictures = [*self.edits, *chain.from_iterable(self.sweeps)]
        return {"edit": {"edits": syntax.settings(pictures)}} if pictures else {}

    def texts(self) -> list[str]:
        """Return the text of each picture, in the order in which the stage makes them."""
        found = []
        for edit in self.settings().get("edit", {}).get("edits", ()):
            if "combined" in edit:
                found.append(syntax.joined(_terms(part)[0] for part in edit["combined"]))
            else:
                found += map(str, _terms(edit))
        return found


def _texts(given: Any, what: str) -> list[str]:
    texts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else [*given]
    for text in texts:
        if not isinstance(text, str):
            raise Refused(
                f"{what} {text!r}",
                f"it must be a text, but is of type {type(text).__name__}",
                'give for instance "smile=2"' if what == "edits" else 'give "smile=-2:2:9"',
            )
    return texts


def _terms(edit: Mapping[str, Any]) -> list[syntax.Term]:
    name, unit = edit["direction"], edit.get("unit", "")
    return [syntax.Term(name, strength, unit) for strength in edit["strengths"]]


def parsed(option: str, text: str, parse: Callable[[str], Parsed]) -> Parsed:
    """Return what `syntax.parse` or `syntax.parse_all` finds in the value of an option.

    Raises:
        Refused: The text has another form.
    """
    try:
        return parse(text)
    except syntax.NotAnEdit as error:
        raise Refused(f"{option} {text!r}", error.reason, error.way_out) from error


def _sweep(text: str) -> tuple[Terms, ...]:
    pictures = tuple(parsed("--sweep", text, syntax.parse_all))
    if len(pictures) < 2:
        raise Refused(
            f"--sweep {text!r}",
            "it names one picture",
            "give several strengths, for instance smile=-2:2:9 for nine from -2 to 2",
        )
    return pictures
