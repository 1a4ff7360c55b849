"""Typeset LaTeX, for tests of tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="LaTeX is not installed: texlive-latex-recommended"
)


def typeset(table: Path, folder: Path) -> str:
    """Typeset a file of tables in an article and return the log, which has no errors."""
    shutil.copy(table, folder / "table.tex")
    (folder / "article.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage[landscape]{geometry}\n"
        "\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "article.pdf").stat().st_size > 10_000
    return done.stdout
