"""Values for the completion of options and arguments in shells."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from click import Context, Parameter
from click.shell_completion import CompletionItem

Complete = Callable[[Context, Parameter, str], list[CompletionItem]]


def _one_of(names: Callable[[], Iterable[str]], files: bool = False, after: str = "") -> Complete:
    """Return a function that completes names; and paths, if no name begins as the text does."""

    def complete(context: Context, parameter: Parameter, text: str) -> list[CompletionItem]:
        found = [CompletionItem(name + after) for name in names() if name.startswith(text)]
        return found or ([CompletionItem(text, type="file")] if files else [])

    return complete


def _presets() -> list[str]:
    from dhr_batch.pipeline.planning import config

    return config.presets()


def _benchmarks() -> list[str]:
    from dhr_batch.pipeline.planning import config

    return config.presets("benchmark")


def _datasets() -> Iterable[str]:
    from dhr_batch.pipeline.datasets import named

    return named.datasets()


def _models() -> Iterable[str]:
    from dhr_batch.pipeline.models import catalogue

    return catalogue.models()


def _generators() -> list[str]:
    from dhr_batch.stages import registry

    return registry.names("generator")


def _stages() -> tuple[str, ...]:
    from dhr_batch.stages import registry

    return registry.STAGES


def _edits() -> list[str]:
    from dhr_batch.stages.edit.direction_files import shipped, shipped_edits

    return sorted({*shipped(), *shipped_edits()})


def _keys() -> list[str]:
    from dhr_batch.pipeline.planning import describe

    return describe.keys()


def assignment(context: Context, parameter: Parameter, text: str) -> list[CompletionItem]:
    """Complete `KEY=VALUE`: the key first, then its values if these are known."""
    from dhr_batch.pipeline.planning import describe

    key, equals, value = text.partition("=")
    if not equals:
        found = {s.key: s for s in describe.settings() if s.key.startswith(key)}
        return [CompletionItem(f"{k}=", help=s.description) for k, s in found.items()]
    values = dict.fromkeys(v for s in describe.settings() if s.key == key for v in s.choices)
    return [CompletionItem(f"{key}={v}") for v in values if v.startswith(value)]


def _nothing() -> tuple[str, ...]:
    return ()


presets, benchmarks, models = _one_of(_presets), _one_of(_benchmarks), _one_of(_models)
stages, keys = _one_of(_stages), _one_of(_keys)
datasets = _one_of(_datasets, files=True)
generators = _one_of(_generators, files=True)
edits = _one_of(_edits, files=True, after="=")
paths = _one_of(_nothing, files=True)
