"""Layers of settings as nested dictionaries: read from files and texts, merged, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages import yaml_files

Layer = Mapping[str, Any]


def read_file(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file.

    Raises:
        Refused: If the file does not contain a mapping of settings.
    """
    try:
        return mapping(yaml_files.read(path), str(path))
    except yaml_files.InvalidYaml as error:
        raise Refused(str(path), error.reason, error.way_out) from error


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Parse texts of the form `section.key=value`, whose values are YAML, to nested settings.

    Raises:
        Refused: If a text has another form.

    >>> assignments(["refine.name=pti", "seed=1"])
    {'refine': {'name': 'pti'}, 'seed': 1}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise Refused(
                f"--set {text!r}",
                "it is not of the form key=value or section.key=value",
                "write for example embed.steps=20",
            )
        section = settings
        for key in keys[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise Refused(
                    f"--set {text!r}",
                    f"{key} was already given a value",
                    "leave out one of the two",
                )
        try:
            section[keys[-1]] = yaml_files.parse(value)
        except yaml_files.InvalidYaml as error:
            raise Refused(
                f"--set {yaml_files.shown(text)}",
                error.reason.replace("it", "the value", 1),
                "put text with special characters in quotes, as in 'key=\"[text\"'",
            ) from error
    return settings


def mapping(value: Any, where: str, example: str = "seed: 1") -> dict[str, Any]:
    """Return settings that were read from YAML.

    Args:
        value: What was read.
        where: Where it stands, for the message.
        example: A line of settings, for the message.

    Raises:
        Refused: If they are no mapping of keys to values.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Refused(
            where,
            f"expected settings as `key: value`, found {yaml_files.shown(value)}",
            f"write for example `{example}`",
        )
    return value


def deep_merge(before: Layer, after: Layer) -> dict[str, Any]:
    """Return settings with those of another layer, which override them at every depth."""
    merged = dict(before)
    for key, value in after.items():
        old = merged.get(key)
        merged[key] = (
            deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys whose values differ between flat settings, each with a line for the user.

    >>> list(differences({"seed": 0}, {"seed": 1}))
    [('seed', 'seed: 0 -> 1')]
    """
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names. The prefix `config.` is left out.

    >>> flat({"refine": {"name": "dhr", "steps": 10}})
    {'refine.name': 'dhr', 'refine.steps': 10}
    """
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        settings |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return {key.removeprefix("config."): value for key, value in settings.items()}
