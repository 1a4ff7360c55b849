"""The whole job on CelebA-HQ with the published combination, as a user's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.tests import rehearsal


@pytest.mark.slow
def test_the_published_job_can_be_rehearsed(shared: Path, tmp_path: Path) -> None:
    assert rehearsal.rehearse(shared / "data", 64, tmp_path) == []
