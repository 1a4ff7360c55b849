"""The machine of a measurement, and the option `--json` of the commands that measure."""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

import click

json_option = click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write the results to as JSON.",
)


def write_json(result: Any, file: Path | None) -> None:
    """Write a result to the file of `json_option`, if one was given."""
    if file is not None:
        file.write_text(json.dumps(result, indent=2))


def describe() -> dict[str, Any]:
    """Return the processor or GPU, the number of cores, and the version and threads of torch."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device() == "cuda" else processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Return the model name of the CPU, or the architecture if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device() -> str:
    """Return `cuda` if there is such a device, else `cpu`, and set the default precision."""
    from dhr_batch.stages.device import use

    return use()


def synchronise() -> None:
    """Wait until the device is idle, so that the time can be measured."""
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def held_mb() -> float:
    """Return the current memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
