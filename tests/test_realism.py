"""The validation of the metric `realism` by labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dhr_batch.benchmarks import realism
from dhr_batch.pipeline.errors import Refused
from dhr_batch.tests.stages.measure.test_realism import changed, face, points


class Faces:
    """Finds the same face in every picture."""

    def __init__(self, path: str = "") -> None:
        pass

    def locate(self, picture):
        return np.zeros(4), "hog"

    def find(self, picture, box):
        return points(len(picture))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Pictures that a viewer sorts by their smear, and one that turns one of them round."""
    rows = ["picture\tphotograph\tone\tother"]
    for name, sigma, one, other in (("a", 1, 1, 1), ("b", 2, 1, 0), ("c", 5, 0, 0), ("d", 7, 0, 0)):
        Image.fromarray(changed(sigma)).save(tmp_path / f"{name}.png")
        rows.append(f"{name}.png\tsource.png\t{one}\t{other}")
    Image.fromarray(face()).save(tmp_path / "source.png")
    (tmp_path / "labels.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_values_are_compared_with_each_viewer(labelled, monkeypatch):
    monkeypatch.setattr("dhr_batch.stages.networks.faces.dlib_face.Landmarks68", Faces)
    monkeypatch.setattr("dhr_batch.pipeline.models.catalogue.path", lambda name: Path(name))
    file = labelled / "found.json"
    words = [str(labelled / "labels.tsv"), str(labelled), "--json", str(file)]
    done = CliRunner().invoke(realism.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert (found["pictures"], found["photographs"], found["agreement"]) == (4, 1, 0.75)
    assert [row["auc"] for row in found["viewers"]] == [1, 1]
    assert [row["good"] for row in found["viewers"]] == [2, 1]
    assert found["viewers"][0]["mean_good"] > found["viewers"][0]["mean_bad"]
    assert "one: 2 good, AUC 1.000" in done.output


@pytest.mark.parametrize(
    ("good", "value", "expected"),
    [("110", (3, 1, 2), 0.5), ("10", (1, 2), 0), ("10", (1, 1), 0.5), ("100", (2, 1, 0), 1)],
)
def test_auc_counts_pairs(good, value, expected):
    chosen = np.array([letter == "1" for letter in good])
    assert realism.auc(chosen, np.array(value, float)) == expected


def test_only_pairs_of_the_same_photograph_count_if_asked():
    good, value = np.array([True, False, True, False]), np.array([1.0, 2.0, 4.0, 3.0])
    assert realism.auc(good, value) == 0.5
    assert realism.auc(good, value, np.array(["a", "a", "b", "b"])) == 0.5
    assert realism.auc(good, value, np.array(["a", "c", "b", "b"])) == 1
    assert np.isnan(realism.auc(good, value, np.arange(4)))


def test_labels_that_cannot_be_used_are_refused(labelled):
    file = labelled / "labels.tsv"
    for text, reason in (
        ("picture\tphotograph\na\tb\n", "one for each viewer"),
        ("picture\tphotograph\tone\na\tb\t2\n", "neither 0 nor 1"),
    ):
        file.write_text(text)
        with pytest.raises(Refused, match=reason):
            realism.labels(file)
