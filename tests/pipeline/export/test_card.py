"""What the dataset card of an export says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.export import target
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.tests.pipeline.exported import (
    exported,
    listed,
    write_later_run,
)


def test_the_card_says_what_it_is_and_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    words = ["--min-identity", 0.9, "--val", 0.3, "--effect", "yaw=:0.2"]
    outcome = exported(run, tmp_path / "out", "--format", "hf", *words)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    made = head["dhr_batch"]
    plan = json.loads((run / "plan.json").read_text())
    assert made["run"] == target.identity(StoredPlan.from_json(plan))
    assert made["settings"]["seed"] == plan["config"]["seed"]
    assert made["export"]["min_identity"] == 0.9
    assert made["export"]["effect"] == {"yaw": "-inf:0.2"}
    assert made["dropped"] == outcome["dropped"]
    assert head["license"] == "other"
    assert made["photograph_licence"] == "not stated"
    assert "Random weights" in text
    assert "1 of 10 photographs of the run have no rows" in text
    for reason, count in outcome["dropped"].items():
        assert f"- {count} pictures: {reason}" in text
    assert str(tmp_path) not in text
    assert str(run.parent) not in text


def test_the_card_names_files_of_all_kinds_of_edits_without_folders(
    run: Path, tmp_path: Path
) -> None:
    kinds = [
        {"direction": "/mine/age.npy", "strengths": [1.0]},
        {"ganspace": "/mine/pca.pt", "component": 2, "rows": [0, 5], "strengths": [1.0]},
        {"stylespace": ["6/501", "-convs.3/17"], "std": "/mine/S_mean_std", "strengths": [1.0]},
        {"styleclip": "/mine/beard.npz", "beta": 0.1, "fs3": "/mine/fs3.npy", "strengths": [1.0]},
    ]
    root = shutil.copytree(run, tmp_path / "run")
    stored = json.loads((root / "plan.json").read_text())
    stored["fingerprint"]["config"]["edit"]["edits"] = kinds
    (root / "plan.json").write_text(json.dumps(stored))
    exported(root, tmp_path / "out", "--format", "hf")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    edits = yaml.safe_load(text.split("---\n")[1])["dhr_batch"]["settings"]["edit"]["edits"]
    named = [{k: str(v).removeprefix("/mine/") for k, v in edit.items()} for edit in kinds]
    assert [{k: str(v) for k, v in edit.items()} for edit in edits] == named


def test_a_run_from_a_run_names_the_first_dataset(run: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    shutil.copytree(run, first)
    plan = json.loads((first / "plan.json").read_text())
    plan["dataset"] = plan["config"]["dataset"] = "portraits"
    (first / "plan.json").write_text(json.dumps(plan))
    exported(write_later_run(tmp_path / "sweep", first), tmp_path / "out")
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text("utf-8").split("---\n")[1])
    assert head["dhr_batch"]["dataset"] == "portraits"
    licence = " ".join(named.find("portraits").licence.split())
    assert head["dhr_batch"]["photograph_licence"] == licence != "not stated"


def test_the_validation_split_has_about_its_share(run: Path, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "none")["note"] == ""
    exported(run, tmp_path / "some", "--val", 0.4, "--strict")
    there = {r["image_id"] for r in listed(tmp_path / "some") if r["split"] == "validation"}
    card = (tmp_path / "some" / "README.md").read_text("utf-8")
    share = f"{len(there)} of 9 photographs ({len(there) / 9:.1%}; 40.0% was requested)"
    assert share in " ".join(card.split())
