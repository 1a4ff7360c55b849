"""Memory of a worker: what tensors free is used again without asking the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy as np
from dhr_batch.pipeline.planning.devices import keep_freed_memory
if {keep}: keep_freed_memory()
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touch()
print(touch())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to glibc")
def test_freed_memory_causes_no_page_faults_again() -> None:
    def faults(keep: bool) -> int:
        code = [sys.executable, "-c", FAULTS.format(keep=keep)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    # Pages may be huge ones, so that even without it the faults are few.
    assert faults(True) <= 2 < faults(False)
