"""The conditions of an export, and the texts that give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.stages.measure.face_scores import NAMES, effect_score

NO_FACE = "no face found"
_LANDMARK_SCORES = frozenset(f"score_{name}" for name in NAMES)


@dataclass(frozen=True)
class Filters:
    """Conditions that exported pictures must fulfil. Photographs (kind `source`) always pass.

    Attributes:
        edits: The edits that are chosen; all of them if it is empty.
        strengths: Ranges of the strengths that are chosen; all of them if it is empty.
        min_identity: Minimum cosine similarity; None for no limit.
        effects: Minimum and maximum effect by edit, for pictures of that edit.
        most: Maximum value by metric.
        faces: Whether landmarks must have been found, which the landmark scores show.
    """

    edits: tuple[str, ...] = ()
    strengths: tuple[tuple[float, float], ...] = ()
    min_identity: float | None = None
    effects: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    faces: bool = True

    def chooses(self, edit: str, strength: float) -> bool:
        """Whether an edit at a strength was asked for."""
        return (not self.edits or edit in self.edits) and (
            not self.strengths or any(low <= strength <= high for low, high in self.strengths)
        )

    def reason(self, picture: Picture, metrics: Mapping[str, float]) -> str | None:
        """Return the first reason why a picture does not pass, or None if it passes.

        Args:
            picture: The picture.
            metrics: Its measured metrics.
        """
        if picture.kind == "source":
            return None
        if self.faces and _LANDMARK_SCORES.isdisjoint(picture.scores):
            return NO_FACE
        if self.min_identity is not None:
            if picture.identity is None:
                return "identity not measured"
            if picture.identity < self.min_identity:
                return f"identity below {self.min_identity:g}"
        if picture.edit in self.effects:
            low, high = self.effects[picture.edit]
            if picture.effect is None:
                return f"effect of {picture.edit} not measured"
            if not low <= picture.effect <= high:
                return f"effect of {picture.edit} outside {low:g}:{high:g}"
        for name, limit in self.most.items():
            if picture.kind == "refined" and name.startswith("change_"):
                continue  # These metrics compare with the refined picture itself.
            if name not in metrics:
                return f"{name} not measured"
            if metrics[name] > limit:
                return f"{name} above {limit:g}"
        return None

    def require(self, edits: set[tuple[str, float]], metrics: set[str]) -> None:
        """Check that a run has what is filtered by.

        Args:
            edits: Name and strength of each edit of the run.
            metrics: The metrics that it has measured.

        Raises:
            Refused: If it lacks an edit, a strength or a metric.
        """
        names = {name for name, _ in edits}
        for option, wanted in (("--edit", self.edits), ("--effect", self.effects)):
            for name in wanted:
                if name not in names:
                    choices = f"choose from: {', '.join(sorted(names)) or 'none'}"
                    if option == "--edit" and "=" in name:
                        choices += "; strengths are chosen by --strength"
                    raise Refused(f"{option} {name}", "the run has no such edit", choices)
        if not any(self.chooses(*edit) for edit in edits) and self.strengths:
            found = sorted(strength for name, strength in edits if name in (self.edits or names))
            choices = ", ".join(f"{strength:g}" for strength in dict.fromkeys(found)) or "none"
            why = "the chosen edits have no such strength"
            raise Refused("--strength", why, f"choose from: {choices}")
        for name in self.effects:
            if self.edits and name not in self.edits:
                raise Refused(
                    f"--effect {name}", "--edit does not choose this edit", f"add --edit {name}"
                )
            score = effect_score(name, metrics)
            if score not in metrics:
                raise Refused(
                    f"--effect {name}",
                    f"it needs {score}, which the run did not measure",
                    "leave this limit out",
                )
        for name in self.most:
            if name not in metrics:
                choices = ", ".join(sorted(metrics)) or "none"
                raise Refused(
                    f"--max {name}", "the run has no such metric", f"choose from: {choices}"
                )


def parse_effect(text: str) -> tuple[str, tuple[float, float]]:
    """Parse the value of `--effect`.

    Returns:
        The edit, and the minimum and maximum of its effect.

    Raises:
        Refused: If the text has another form.

    >>> parse_effect("smile=0.3:0.8"), parse_effect("smile=0.3:")
    (('smile', (0.3, 0.8)), ('smile', (0.3, inf)))
    """
    name, _, span = text.rpartition("=")
    if not name or ":" not in span:
        raise _malformed(f"--effect {text!r}", "NAME=LOW:HIGH", "smile=0.1:0.4")
    return name, _span(span, f"--effect {text!r}", "NAME=LOW:HIGH", "smile=0.1:0.4")


def parse_strength(text: str) -> tuple[float, float]:
    """Parse the value of `--strength`.

    Returns:
        The minimum and maximum.

    Raises:
        Refused: If the text has another form.

    >>> parse_strength("2"), parse_strength(":-1")
    ((2.0, 2.0), (-inf, -1.0))
    """
    span = text if ":" in text else f"{text}:{text}"
    return _span(span, f"--strength {text!r}", "NUMBER or LOW:HIGH", "2 or 1:3")


def _span(span: str, what: str, form: str, example: str) -> tuple[float, float]:
    """Parse `LOW:HIGH`, either of which may be missing."""
    low, _, high = span.partition(":")
    first, last = _number(low or "-inf"), _number(high or "inf")
    if first is None or last is None:
        raise _malformed(what, form, example)
    if first > last:
        raise Refused(what, f"no number lies between {low} and {high}", "exchange them")
    return first, last


def _malformed(what: str, form: str, example: str) -> Refused:
    return Refused(what, f"it is not of the form {form}", f"write for instance {example}")


def parse_limit(text: str) -> tuple[str, float]:
    """Parse the value of `--max`, such as `st_lpips_alex=0.2`.

    Returns:
        The metric and its maximum.

    Raises:
        Refused: If the text has another form.
    """
    name, _, number = text.partition("=")
    limit = _number(number)
    if not name or limit is None:
        raise _malformed(f"--max {text!r}", "METRIC=NUMBER", "change_out=0.05")
    return name, limit


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number
