"""The folder of twelve awkward files as a user would run it."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

from skimage.data import astronaut

import dhr_batch
from dhr_batch.tests.awkward import write_awkward_folder


def test_awkward_files_are_processed_or_quarantined_by_name_and_the_run_succeeds(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "awkward", tmp_path / "out"
    expected = write_awkward_folder(folder, astronaut())
    ids = {unicodedata.normalize("NFC", name): error for name, error in expected.items()}
    command = [sys.executable, "-m", "dhr_batch.cli", "run", "--dataset", str(folder)]
    command += ["--preset", "tiny", "--set", "edit.edits=[]", "--gpus", "0", "--out", str(out)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=900)

    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["images"], outcome["done"], outcome["quarantined"]) == (12, 6, 6)
    run = dhr_batch.open(out)
    assert sorted(run.ids) == sorted(name for name, error in ids.items() if error is None)
    refused = {row.image_id: row for row in run.quarantine.itertuples()}
    assert {name: row.error_class for name, row in refused.items()} == {
        name: error for name, error in ids.items() if error is not None
    }
    for name, row in refused.items():
        assert name in row.message
