"""What MkDocs adds while it builds: settings, commands, and pages of files in the root folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from dhr_batch.cli import main
from dhr_batch.pipeline.planning import describe
from dhr_batch.stages import registry

ROOT = Path(__file__).resolve().parent.parent
# Pages whose text lies where people and tools look for it.
_OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_OPTION, _WHOLE = re.compile(r"(?<![\w-])--?[a-z][\w-]*"), r'<span class="whole">\g<0></span>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files below docs/."""
    for page, name in _OUTSIDE.items():
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert what a page asks for."""
    for place, made in {"<!-- settings -->": tables, "<!-- commands -->": commands}.items():
        if place in markdown:
            markdown = markdown.replace(place, made())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Mark dates in tables and options in code, which are not to be broken at their hyphens."""
    html = re.sub(r"<td>(\d{4}-\d\d-\d\d)</td>", r'<td class="whole">\1</td>', html)
    return re.sub(r"<code>[^<]+</code>", lambda code: _OPTION.sub(_WHOLE, code[0]), html)


def commands(command: click.Command = main, parent: click.Context | None = None) -> str:
    """Return the help of a command and of those below it, as Markdown."""
    context = click.Context(
        command,
        info_name=command.name if parent else "dhr-batch",
        parent=parent,
        terminal_width=88,
        **command.context_settings,
    )
    text = command.get_help(context)
    parts = [f"## {context.command_path}", f"```text\n{text}\n```"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            parts += [commands(below, context)] if below else []
    return "\n\n".join(parts)


def tables() -> str:
    """Return tables of all settings, as Markdown, by stage and method."""
    parts = ["## Of the run"]
    families = set(registry.STAGES)
    for (family, method), found in groupby(describe.settings(), _place):
        if family in families:
            families.remove(family)
            parts.append(f"## {family}")
        if method:
            text = method.replace("+", "-plus")
            kind = "name" if family in registry.STAGES else "kind"
            parts.append(
                f"### `{family}`, {kind} `{method}` {{ #{family.replace('.', '-')}-{text} }}"
            )
        parts.append(_table(found))
    return "\n\n".join(parts)


def _place(setting: describe.Setting) -> tuple[str, str]:
    """Return the section of a setting in the page."""
    first, _, rest = setting.key.partition(".")
    kind_of_edit = rest.startswith("edits.")
    return (f"{first}.edits" if kind_of_edit else first if rest else ""), setting.method


def _table(found: Iterable[describe.Setting]) -> str:
    rows = ["| setting | values | default | |", "|---|---|---|---|"]
    for setting in found:
        default = "" if setting.required else f"`{describe.text(setting.default)}`"
        presets = [f"{name} `{describe.text(value)}`" for name, value in setting.presets.items()]
        about = setting.description + (f"; presets: {', '.join(presets)}" if presets else "")
        cells = (f"`{setting.key}`", setting.type, default, about)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)
