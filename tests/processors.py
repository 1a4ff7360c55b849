"""Instruction sets of several processors, and the test suite under each: `make test-processors`.

Sums of floats differ in their last bits with the width of the instructions that make them, so what
is true on one processor only shows under another setting.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

# native: as torch chooses. default: the plain kernels of torch. avx2: as on a processor without
# AVX-512, in torch and in the libraries that it multiplies and convolves with.
SETTINGS: dict[str, dict[str, str]] = {
    "native": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
}


def environment(name: str) -> dict[str, str]:
    """Return the environment of this process with the variables of only this setting."""
    chosen = {variable for setting in SETTINGS.values() for variable in setting}
    return {k: v for k, v in os.environ.items() if k not in chosen} | SETTINGS[name]


def run(name: str, words: Sequence[str]) -> tuple[int, str]:
    """Run pytest under a setting and show its output. Returns its exit code and its last line."""
    print(f"{name}: {' '.join(f'{k}={v}' for k, v in SETTINGS[name].items())}", flush=True)
    command = [sys.executable, "-m", "pytest", *words]
    last = ""
    with subprocess.Popen(
        command, env=environment(name), stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def main(words: Sequence[str]) -> int:
    """Run pytest with these arguments under one setting after the other, then print a table.

    Returns the largest exit code.
    """
    results = {name: run(name, words) for name in SETTINGS}
    print(f"\n{'setting':9s} {'exit code':>9s}  pytest")
    for name, (code, last) in results.items():
        print(f"{name:9s} {code:9d}  {last}")
    return max(abs(code) for code, _ in results.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
