"""The pages of the documentation, and what tests read in them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    blocks = _FENCED.findall(page.read_text("utf-8"))
    return [textwrap.dedent(body) for _, of, body in blocks if of == language]


def inline(page: Path) -> list[str]:
    """Return what is in single backticks, each text once."""
    rest = _FENCED.sub("", page.read_text("utf-8"))
    return list(dict.fromkeys(re.findall(r"(?<!`)`([^`]+)`(?!`)", rest)))


def commands(page: Path) -> list[str]:
    """Return the `dhr-batch` commands of shell blocks, without that word and remarks, in order."""
    lines = [line for block in fenced(page, "bash") for line in block.splitlines()]
    said = [line.removeprefix("dhr-batch ") for line in lines if line.startswith("dhr-batch ")]
    return [line.partition(" #")[0].strip() for line in said]
