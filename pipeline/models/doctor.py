"""Checks whether this machine is ready for the default run, with a remedy for each problem."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dhr_batch.pipeline.cores import cores
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.storage.scratch import home_is_writable, socket_place
from dhr_batch.pipeline.strict import Strict

GB = 1e9
# Minimum versions. Older torch and Pillow have vulnerabilities in reading untrusted files.
LEAST = {"torch": (2, 12), "ray": (2, 59), "pillow": (12, 2)}
LEAST_PYTHON = (3, 11)
# Packages with compiled parts, which need libraries of the system, by the packages of the index.
COMPILED = {
    "dlib": "dlib-bin",
    "cv2": "opencv-python-headless",
    "imagecodecs": "imagecodecs",
    "pillow_heif": "pillow-heif",
    "pyarrow": "pyarrow",
    "simplejpeg": "simplejpeg",
    "torchvision": "torchvision",
}
# What a worker on a CPU takes at 256 px, and the open files that Ray wants.
WORKER_MEMORY, OPEN_FILES = 2 * GB, 1024
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Check(Strict):
    """The result of one check.

    Attributes:
        state: `broken` prevents the default run, `note` does not.
        found: What was found.
        way_out: The remedy; empty if there is nothing to do.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    found: str
    way_out: str = ""


def checks() -> list[Check]:
    """Run all checks, in a fixed order. This imports torch, which takes seconds."""
    return [
        _python(),
        _torch(),
        _devices(),
        *(_version(package) for package in ("ray", "pillow")),
        *_compiled(),
        _pip(),
        _processors(),
        _memory(),
        _open_files(),
        _shared_memory(),
        _cache_folder(),
        _home_folder(),
        _sockets(),
        _temporary(),
        _space("cache space", _existing(catalogue.home())),
        _space("space here", Path.cwd()),
        *_models(),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} {sys.executable}"
    if _numbers(platform.python_version()) >= LEAST_PYTHON:
        return Check(name="python", state="ok", found=found)
    wanted = ".".join(map(str, LEAST_PYTHON))
    remedy = f"install Python {wanted} or newer, and dhr-batch into an environment of it"
    return Check(
        name="python", state="broken", found=f"{found}, older than {wanted}", way_out=remedy
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _version(package: str) -> Check:
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        remedy = f"pip install {package}"
        return Check(name=package, state="broken", found="not installed", way_out=remedy)
    least = LEAST[package]
    if _numbers(version) >= least:
        return Check(name=package, state="ok", found=version)
    wanted = ".".join(map(str, least))
    remedy = f"pip install '{package}>={wanted}'"
    return Check(
        name=package, state="broken", found=f"{version}, older than {wanted}", way_out=remedy
    )


def _torch() -> Check:
    check = _version("torch")
    if check.state != "ok":
        return check
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        remedy = "pip install --force-reinstall torch"
        return Check(name="torch", state="broken", found=f"import fails: {error}", way_out=remedy)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Check(name="torch", state="ok", found=f"{torch.__version__}, {built}")


def _devices() -> Check:
    if find_spec("torch") is None:
        return Check(name="devices", state="note", found="unknown without torch")
    try:
        torch = import_module("torch")
    except (ImportError, OSError):
        return Check(
            name="devices", state="note", found="unknown, because torch cannot be imported"
        )
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{card.name} ({card.total_memory / GB:.0f} GB)" for card in cards)
        return Check(name="devices", state="ok", found=found)
    if driver := _nvidia_driver():
        built = torch.version.cuda
        remedy = (
            f"update the driver to one for CUDA {built}, or install a build of torch for this one"
            if built
            else "install a build of torch with CUDA"
        )
        found = (
            f"CPU; an NVIDIA GPU is unused, with driver {driver} and torch for {built or 'CPUs'}"
        )
        return Check(name="devices", state="note", found=found, way_out=remedy)
    return Check(name="devices", state="ok", found="CPU (no GPU): runs use the 256 px generator")


def _nvidia_driver() -> str:
    """Return the version of the NVIDIA driver, or "" if there is no GPU of NVIDIA."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().partition("\n")[0]


def _compiled() -> Iterator[Check]:
    for module, package in COMPILED.items():
        try:
            found = str(getattr(import_module(module), "__version__", "there"))
        except (ImportError, OSError) as error:
            yield Check(
                name=module,
                state="broken",
                found=f"import fails: {error}",
                way_out=f"pip install --force-reinstall {package}; a library that it names comes "
                "from the package manager of the system",
            )
        else:
            yield Check(name=module, state="ok", found=found)


def _pip() -> Check:
    try:
        return Check(name="pip", state="ok", found=metadata.version("pip"))
    except metadata.PackageNotFoundError:
        remedy = "python -m ensurepip --upgrade"
        return Check(
            name="pip", state="note", found="absent, so models cannot be pulled", way_out=remedy
        )


def _processors() -> Check:
    given = [f"{name}={os.environ[name]}" for name in THREAD_SETTINGS if name in os.environ]
    found = f"{cores()} usable cores; {', '.join(given) or 'no thread settings'}"
    return Check(name="processors", state="ok", found=f"{found} (runs set `threads` per worker)")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # The limit of a container.
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    found = f"{total / GB:.1f} GB"
    if total >= WORKER_MEMORY:
        return Check(name="memory", state="ok", found=found)
    remedy = f"use a machine or container with at least {WORKER_MEMORY / GB:.0f} GB"
    return Check(name="memory", state="note", found=found, way_out=remedy)


def _open_files() -> Check:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {limit}"
    # Ray raises the limit itself where that is allowed.
    if resource.RLIM_INFINITY in (limit, most) or max(limit, most) >= OPEN_FILES:
        return Check(name="open files", state="ok", found=found)
    remedy = f"raise the limit: ulimit -n {OPEN_FILES}"
    return Check(name="open files", state="broken", found=found, way_out=remedy)


def _shared_memory() -> Check:
    name, folder = "shared memory", Path("/dev/shm")
    if not folder.is_dir():
        return Check(name=name, state="ok", found="no /dev/shm on this system")
    free = shutil.disk_usage(folder).free
    if free >= 0.2 * GB:
        return Check(name=name, state="ok", found=f"{free / GB:.1f} GB free")
    remedy = "in a container: --shm-size=1g; Ray is slow without it"
    return Check(name=name, state="note", found=f"{free / GB:.1f} GB free", way_out=remedy)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _cache_folder() -> Check:
    home = catalogue.home()
    source = "DHR_BATCH_HOME" if os.environ.get("DHR_BATCH_HOME") else "default place"
    try:
        with tempfile.TemporaryFile(dir=_existing(home)):
            pass
    except OSError as error:
        missing = [s.name for s in catalogue.model_statuses() if s.default and s.state != "ready"]
        return Check(
            name="cache",
            state="broken" if missing else "note",
            found=f"{home} ({source}) cannot be written: {error.strerror}",
            way_out="set DHR_BATCH_HOME to a folder that you can write to",
        )
    return Check(name="cache", state="ok", found=f"{home} ({source})")


def _home_folder() -> Check:
    home = os.path.expanduser("~")
    if home_is_writable():
        return Check(name="home", state="ok", found=home)
    found = f"{home} cannot be written; packages write to a temporary folder in runs without it"
    return Check(name="home", state="note", found=found, way_out="set HOME to a folder of yours")


def _sockets() -> Check:
    try:
        return Check(name="sockets", state="ok", found=f"in {socket_place().parent}")
    except StorageError as error:
        return Check(name="sockets", state="broken", found=error.reason, way_out=error.way_out)


def _temporary() -> Check:
    name = "temporary files"
    try:
        folder = Path(tempfile.gettempdir())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = "set TMPDIR to a folder that you can write to"
        return Check(name=name, state="broken", found=str(error), way_out=remedy)
    return _space(name, folder)


def _space(name: str, folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free in {folder}"
    if free >= 2 * GB:
        return Check(name=name, state="ok", found=found)
    return Check(
        name=name,
        state="note" if free >= 0.3 * GB else "broken",
        found=found,
        way_out="free some space: models take 0.5 GB, and `run` shows how much it will write; "
        "DHR_BATCH_HOME, TMPDIR and --out choose other disks",
    )


def _models() -> Iterator[Check]:
    statuses = catalogue.model_statuses()
    for status in statuses:
        if status.state == "ready" and status.default:
            yield Check(name=f"model {status.name}", state="ok", found=status.path or "")
        elif status.state != "ready" and (status.default or status.state == "damaged"):
            remedy = status.message.rpartition("with: ")[2]
            yield Check(
                name=f"model {status.name}",
                state="broken" if status.default else "note",
                found=status.state,
                way_out=remedy,
            )
        elif status.state == "broken":
            yield Check(
                name=f"model {status.name}", state="note", found="broken", way_out=status.message
            )
    absent = [s.name for s in statuses if s.state == "missing" and not s.default]
    if absent:
        yield Check(name="further models", state="ok", found=f"not pulled: {', '.join(absent)}")
