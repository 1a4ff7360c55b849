"""The folder of twelve awkward files, given to the command `run`."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from click.testing import CliRunner
from skimage.data import astronaut

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.tests.awkward import write_awkward_folder
from dhr_batch.tests.faults import driven


def test_awkward_files_are_processed_or_quarantined_by_name_and_the_run_succeeds(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "awkward", tmp_path / "out"
    expected = write_awkward_folder(folder, astronaut())
    ids = {unicodedata.normalize("NFC", name): error for name, error in expected.items()}
    words = ["run", "--dataset", str(folder), "--preset", "tiny", "--set", "edit.edits=[]"]
    with driven.without_ray():
        done = CliRunner().invoke(main, [*words, "--gpus", "0", "--out", str(out), "--json"])

    assert done.exit_code == 0, done.output
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
