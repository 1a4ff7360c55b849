"""What MkDocs adds while it builds: tables of settings, and pages of files in the root folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from dhr_batch.pipeline.planning import config as settings
from dhr_batch.stages import registry

ROOT = Path(__file__).resolve().parent.parent
# Pages whose text lies where people and tools look for it.
_OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_PLACE = "<!-- settings -->"
# Limits of numbers in JSON schemas.
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files below docs/."""
    for page, name in _OUTSIDE.items():
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert the tables of settings where a page asks for them."""
    return markdown.replace(_PLACE, tables()) if _PLACE in markdown else markdown


def tables() -> str:
    """Return tables of all settings, as Markdown, by stage and method."""
    parts = ["## Of the run", _table(settings.Config, "", registry.STAGES)]
    for family in registry.STAGES:
        parts.append(f"## {family}")
        for name in registry.names(family):
            anchor = f"{family}-{name.replace('+', '-plus')}"
            parts.append(f"### `{family}.name={name}` {{ #{anchor} }}")
            parts.append(_table(settings.options_class(family, name), f"{family}.", ("name",)))
    return "\n\n".join(parts)


def _table(model: type[BaseModel], prefix: str, skipped: tuple[str, ...]) -> str:
    schema = model.model_json_schema(by_alias=False)
    rows = ["| setting | values | default | |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if name in skipped:
            continue
        target = schema.get("$defs", {}).get(field.get("$ref", "").rpartition("/")[2], {})
        for key, part in target.get("properties", {"": field}).items():
            part = {"description": field.get("description", "")} | part
            default = part.get("default")
            cells = (
                f"`{prefix}{name}{'.' * bool(key)}{key}`",
                _values(part),
                "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`",
                part["description"],
            )
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) if len(rows) > 2 else "It has no options."


def _values(field: dict[str, Any]) -> str:
    """Return which values a field of a JSON schema takes."""
    if "anyOf" in field:
        return " or ".join(_values(each) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    limits = [f"{sign} {field[key]:g}" for key, sign in _LIMITS.items() if key in field]
    kind = {"array": "list", "object": "mapping"}.get(field.get("type", ""), field.get("type", ""))
    return " ".join([kind, *limits])
