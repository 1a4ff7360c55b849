"""Commands that lack models ask one question, and download nothing without an answer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dhr_batch.pipeline.cli import pulling
from dhr_batch.pipeline.models import catalogue, needed

CONTENT = {"one": b"1" * 1000, "two": b"2" * 3_000_000}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with two models to download and one that only its authors have."""
    folder = tmp_path / "home"
    (folder / "models.d").mkdir(parents=True)
    monkeypatch.setenv("DHR_BATCH_HOME", str(folder))
    sources: dict[str, Any] = {
        "theirs": {"kind": "file", "path": "theirs.pt", "obtain": "example.org"}
    }
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        url = (tmp_path / name).as_uri()
        sources[name] = {"kind": "url", "url": url, "sha256": digest, "size": len(content)}
    for name, source in sources.items():
        words = dict.fromkeys(("role", "description", "preprocessing"), "-")
        model = {"name": name, "licence": f"Licence of {name}", "commercial_use": "unclear"}
        text = yaml.safe_dump(words | model | {"source": source})
        (folder / "models.d" / f"{name}.yaml").write_text(text)
    return folder


def ready() -> set[str]:
    return {name for name in CONTENT if not catalogue.missing([name]).get(name)}


@pytest.mark.parametrize(
    ("names", "terminal", "answer", "yes", "pulled"),
    [
        (["one", "two"], True, True, False, {"one", "two"}),
        (["one", "two"], True, False, False, set()),
        (["one", "two"], False, None, False, set()),
        (["one"], False, None, True, {"one"}),
        (["one", "theirs"], True, None, True, set()),
    ],
)
def test_models_are_downloaded_after_one_question(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    terminal: bool,
    answer: bool | None,
    yes: bool,
    pulled: set[str],
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pulling, "has_terminal", lambda: terminal)
    monkeypatch.setattr(click, "confirm", lambda text, **_: asked.append(text) or answer)
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        needed.require(names)
        return "done"

    if pulled:
        assert pulling.on_demand(work, yes) == "done"
    else:
        with pytest.raises(catalogue.ModelMissing) as refused:
            pulling.on_demand(work, yes)
        assert refused.value.models == names
        assert "dhr-batch models pull" in refused.value.way_out
        assert ("--yes" in refused.value.way_out) == ("theirs" not in names)
    assert ready() == pulled
    assert len(calls) == 1 + bool(pulled)
    assert len(asked) == (answer is not None)
    said = capsys.readouterr().err
    if asked:
        assert "3 MB" in asked[0]
        assert all(f"unclear; Licence of {name}" in said for name in names)


def test_nothing_is_asked_if_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "has_terminal", lambda: True)
    assert not pulling.offer([], yes=False)
    needed.require([])
    with pytest.raises(catalogue.ModelMissing, match=r"3 models are missing: one, theirs, two"):
        needed.require(["two", "one", "theirs"])
