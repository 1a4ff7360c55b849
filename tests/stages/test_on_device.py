"""Code for GPUs, on machines without one: see `tests/pretended_cuda.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_all_stages_on_a_pretended_gpu(root: Path) -> None:
    file = root / "tests" / "stages" / "on_device.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)],
        cwd=root,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
