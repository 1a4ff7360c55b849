from __future__ import annotations

import numpy as np
import pytest

from dhr_batch.fitting.thresholds import GROUPS, Sample, choose, class_groups
from dhr_batch.stages.networks.parsing import INDEX


def sample(errors: np.ndarray, group: int) -> Sample:
    return Sample(errors, np.full(len(errors), group), np.full(len(errors), 10))


def test_a_threshold_keeps_the_share_of_clean_pixels_it_was_asked_for() -> None:
    clean = [sample(np.linspace(0.1, 0.5, 100) * (g + 1), g) for g in range(3)]
    occluded = [sample(np.linspace(0.4, 0.6, 50) * (g + 1), g) for g in range(3)]
    rows = choose(clean, occluded, 0.9)
    assert [r.group for r in rows] == list(GROUPS)
    for g, row in enumerate(rows):
        assert row.threshold == pytest.approx(0.46 * (g + 1), abs=0.005 * (g + 1))
        assert row.clean_in == 0.9
        assert row.occluded_out == pytest.approx(0.7, abs=0.03)


def test_vanished_superpixels_do_not_count() -> None:
    clean = [sample(np.array([0.1] * 9 + [np.nan]), g) for g in range(3)]
    assert [r.clean_pixels for r in choose(clean, [], 0.9)] == [90] * 3


def test_group_without_pixels_is_named() -> None:
    with pytest.raises(ValueError, match="parts"):
        choose([sample(np.ones(3), 0)], [], 0.9)


def test_class_groups() -> None:
    groups = class_groups()
    assert groups[INDEX["face"]] == 0
    assert groups[INDEX["nose"]] == groups[INDEX["left_ear"]] == 1
    assert groups[INDEX["hair"]] == groups[INDEX["glasses"]] == 2
    assert groups[INDEX["background"]] == groups[INDEX["hat"]] == -1
