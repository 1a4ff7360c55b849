"""Rehearse the whole job on CelebA-HQ with the published combination, on random weights.

python -m dhr_batch.tests.rehearsal --photographs DIR [--images 64] [--work DIR]

A made CelebA-HQ has its 30,000 names, the published mapping file, and hard links to a few face
crops. The commands are those of a user: listing, plan, run on 8 GPUs, a SIGKILL of the driver, the
same command again, verify, report, bench and export. GPUs are logical ones, whose workers compute
on the CPU, and the checkpoints of all models that `dhr-published` names are filled ones
(`tests.filled`). The transcript with times is printed. Ends with 1 if a command does not end as it
should.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from PIL import Image

from dhr_batch.pipeline.datasets.celebahq import FIRST_TEST, IMAGES, MAPPING, TEST_IMAGES
from dhr_batch.tests import filled
from dhr_batch.tests.faults import processes

NAMES, ORIGINALS = 30_000, 202_599
# Lines of the output of a command that are printed.
_LINES = 20
# The models of `dhr-published`, but for its generator.
MODELS = ("e4e-ffhq", "farl-celebm-448", "lpips-alex-backbone", "lpips-vgg-backbone")
# One or two steps of each stage, at sizes that suit pictures of 64 px on a CPU.
SHORT = (
    "segment.coarse_steps=1",
    "segment.error_size=128",
    "refine.steps=2",
    "refine.perceptual_size=128",
    "shard_size=4",
    "batch_size=2",
)
MATRIX = """\
about: Rehearsal with filled checkpoints.
datasets: [celebahq]
settings:
  generator: {generator}
  measure: {{name: standard, perceptual: [lpips_alex, lpips_vgg, st_lpips_alex]}}
  segment: {{name: dhr, parser: none}}
embedders:
  e4e: {{settings: {{embed: e4e}}}}
  psp: {{settings: {{embed: psp}}}}
refiners:
  dhr: {{settings: {{refine: {{name: dhr, steps: 2}}}}}}
  dhr_published:
    settings: {{refine: {{name: dhr-published, steps: 2, perceptual_size: 128}}}}
columns: [psnr, psnr_ganinverter, mse, lpips_alex, lpips_vgg, seconds, bytes]
compare_to: dhr
"""


@dataclass
class Rehearsal:
    """The commands of a rehearsal.

    Attributes:
        work: The folder of everything that is made.
        env: Variables of the commands.
        failed: The commands that did not end as they should.
    """

    work: Path
    env: dict[str, str]
    failed: list[str] = field(default_factory=list)

    def command(self, *words: str, ends: int = 0, gpus: int = 8) -> str:
        """Run a command of dhr-batch, print it with its output and time, and return the output.

        Args:
            words: Its arguments.
            ends: The exit code that it should have.
            gpus: The number of GPUs that the machine seems to have.
        """
        started = time.monotonic()
        return self._ended(words, self._start(words, gpus), ends, started)

    def killed(self, *words: str, shards: int) -> None:
        """Kill the driver of a run with SIGKILL as soon as so many shards are committed."""
        started = time.monotonic()
        process = self._start(words, 8)
        committed = self.work / words[words.index("--out") + 1] / "_state" / "shards"
        processes.until(
            lambda: process.poll() is not None or len([*committed.glob("*")]) >= shards,
            f"{shards} shards are committed",
            900,
        )
        others = processes.family(process.pid)[1:]
        process.send_signal(signal.SIGKILL)
        self._ended(words, process, -signal.SIGKILL, started)
        print(
            f"SIGKILL to the driver after {shards} committed shards; {len(others)} other processes"
        )
        alive = (pid for pid in others if Path(f"/proc/{pid}").exists())
        processes.until(lambda: next(alive, None) is None, "the other processes end")

    def _start(self, words: Sequence[str], gpus: int) -> subprocess.Popen[bytes]:
        print(f"\n$ dhr-batch {' '.join(words)}", flush=True)
        env = os.environ | self.env | {"DHR_BATCH_LOGICAL_GPUS": str(gpus)}
        command = [sys.executable, "-m", "dhr_batch", *words]
        with self._output.open("wb") as file:
            return subprocess.Popen(
                command, cwd=self.work, env=env, stdout=file, stderr=subprocess.STDOUT
            )

    def _ended(
        self, words: Sequence[str], process: subprocess.Popen[bytes], ends: int, started: float
    ) -> str:
        """Wait for a command, print its output and time, and return its output."""
        code = process.wait()
        seconds = time.monotonic() - started
        output = self._output.read_text("utf-8")
        print("\n".join(output.rstrip().splitlines()[-_LINES:]))
        print(f"[{seconds:.1f} s, exit code {code}]", flush=True)
        if code != ends:
            self.failed.append(f"{' '.join(words)}: exit code {code}, not {ends}")
        return output

    @property
    def _output(self) -> Path:
        return self.work / "output.txt"


def make_celebahq(folder: Path, crops: Sequence[Path]) -> None:
    """Write a folder like CelebAMask-HQ, whose images are links to a few crops.

    Of the 30,000 images, 2,824 are of CelebA's test split, as published. Which ones is drawn.
    """
    (folder / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(0)
    test = FIRST_TEST + rng.choice(ORIGINALS - FIRST_TEST, TEST_IMAGES, replace=False)
    rest = rng.choice(FIRST_TEST, NAMES - TEST_IMAGES, replace=False)
    originals = rng.permutation(np.concatenate([test, rest]))
    copies = []
    for number, crop in enumerate(crops):
        copies.append(folder / f"crop-{number}.jpg")
        with Image.open(crop) as image:
            image.convert("RGB").resize((1024, 1024)).save(copies[-1], quality=92)
    for index in range(NAMES):
        os.link(copies[index % len(copies)], folder / IMAGES / f"{index}.jpg")
    lines = (f"{i:<9d}{o:<15d}{o + 1:06d}.jpg" for i, o in enumerate(originals))
    text = "\n".join(["idx      orig_idx       orig_file", *lines]) + "\n"
    (folder / MAPPING).write_text(text, "utf-8")


def rehearse(crops: Sequence[Path], images: int, work: Path) -> list[str]:
    """Run all commands, print the transcript, and return which did not end as they should.

    Args:
        crops: Aligned face crops.
        images: The number of images to process.
        work: An empty folder.
    """
    started = time.monotonic()
    make_celebahq(work / "data" / "celebahq", crops)
    checkpoint = filled.write(work / "filled", MODELS)
    env = filled.environment(work / "filled") | {
        "DHR_BATCH_DATA": str(work / "data"),
        "OMP_NUM_THREADS": "1",
    }
    print(
        f"{NAMES} names, {len(crops)} crops, {len(MODELS)} filled checkpoints and a generator of "
        f"64 px in {work} [{time.monotonic() - started:.1f} s]"
    )
    generator = work / "filled" / f"{filled.GENERATOR}.safetensors"
    job = Rehearsal(work, env)
    published = ("run", "--dataset", "celebahq", "--preset", "dhr-published", "--gpus", "8")
    sets = [word for text in (f"generator={generator}", *SHORT) for word in ("--set", text)]
    run = (*published, "--limit", str(images), *sets, "--out", "run", "--progress", "plain")

    job.command("models", "convert", str(checkpoint))
    job.command("datasets", "list")
    job.command(*published, *sets, "--out", "refused", ends=2, gpus=0)
    found = job.command(*published, *sets, "--out", "run", "--dry-run")
    if f" {TEST_IMAGES} images" not in found:
        job.failed.append(f"the plan has not {TEST_IMAGES} images")
    # Only a run that starts knows the generator, and with it the size of its output.
    job.killed(*published, *sets, "--out", "whole", "--progress", "plain", shards=1)
    job.killed(*run, shards=2)
    job.command("status", "run")
    job.command(*run)
    job.command("verify", "run")
    job.command("report", "run")
    (work / "bench.yaml").write_text(MATRIX.format(generator=generator), "utf-8")
    bench = ("bench", "-c", "bench.yaml", "--limit", "4", "--gpus", "8", "--progress", "plain")
    job.command(*bench, "--out", "bench")
    job.command("export", "run", "--out", "export", "--keep-faceless")
    print(f"\nall commands: {time.monotonic() - started:.0f} s")
    return job.failed


@click.command()
@click.option(
    "--photographs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with aligned face crops, aligned_*.jpg.",
)
@click.option("--images", default=64, show_default=True, help="Number of images to process.")
@click.option("--work", type=click.Path(path_type=Path), help="Empty folder to work in, and keep.")
def main(photographs: Path, images: int, work: Path | None) -> None:
    """Rehearse the job on CelebA-HQ with filled checkpoints, and print the transcript."""
    with contextlib.ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        crops = sorted(photographs.glob("aligned_*.jpg"))[:6]
        if not crops:
            raise click.UsageError(f"{photographs} has no file aligned_*.jpg")
        failed = rehearse(crops, images, work.resolve())
    for text in failed:
        print(f"failed: {text}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
