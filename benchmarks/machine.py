"""What a measurement ran on, and the end of the commands that measure."""

from __future__ import annotations

import json
import os
import platform
import resource
from pathlib import Path
from typing import Any

import click

json_option = click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="also write JSON here"
)


def write_json(result: Any, file: Path | None) -> None:
    """Write a result where `json_option` says, if it says so."""
    if file is not None:
        file.write_text(json.dumps(result, indent=2))


def describe() -> dict[str, Any]:
    """Processor or GPU, cores, torch and its threads."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device() == "cuda" else processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Model name of the CPU; the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device() -> str:
    """`cuda` where there is such a device, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def held_mb() -> float:
    """The memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
