"""Runs that go on with other instructions, and the command that tests under several of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from dhr_batch.tests import processors


def dhr(setting: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dhr_batch.cli", *map(str, words)],
        env=processors.environment(setting),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def published(out: Path, shard: int) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob(f"*/part-{shard:05d}.parquet")}


def test_a_run_goes_on_with_the_instructions_of_another_processor(tmp_path: Path) -> None:
    photographs, out = tmp_path / "photographs", tmp_path / "run"
    photographs.mkdir()
    face = Image.fromarray(data.astronaut())
    face.save(photographs / "a.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photographs / "b.png")
    words = ["run", "--dataset", photographs, "--preset", "tiny", "--gpus", "0", "--no-report"]
    words += ["--set", "edit.edits=[{direction: smile, strengths: [1]}]"]
    words += ["--set", "shard_size=1", "--set", "workers=1", "--out", out]
    first = dhr("default", *words)
    assert first.returncode == 0, first.stderr
    plan, finished, lost = (out / "plan.json").read_bytes(), published(out, 0), published(out, 1)

    (out / "_state" / "shards" / "00001.json").unlink()
    for table in lost:
        (out / table / "part-00001.parquet").unlink()
    again = dhr("avx2", *words)
    assert again.returncode == 0, again.stderr
    assert "resuming: 1 shards are finished" in again.stderr
    assert (out / "plan.json").read_bytes() == plan
    assert published(out, 0) == finished
    assert published(out, 1).keys() == lost.keys()
    assert pq.read_table(out / "latents")["image_id"].to_pylist() == ["a.png", "b.png"]

    nothing = dhr("native", *words)
    assert nothing.returncode == 0, nothing.stderr
    assert "nothing to do" in nothing.stderr
    rendered = dhr("native", "render", out, "--all", "--edit", "smile=1", "--out", tmp_path / "new")
    assert rendered.returncode == 0, rendered.stderr


def test_a_failure_under_any_setting_fails_all_and_is_in_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    file = tmp_path / "test_one.py"
    file.write_text(
        "import os\n"
        "def test_setting():\n"
        "    setting = [os.environ.get(k) for k in ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA')]\n"
        "    assert setting in ([None, None], ['avx2', 'AVX2'])\n"
    )
    assert (
        processors.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(file)]) == 1
    )
    table = [line.split()[:5] for line in capfd.readouterr().out.splitlines()[-3:]]
    assert table == [
        ["native", "0", "1", "passed", "in"],
        ["default", "1", "1", "failed", "in"],
        ["avx2", "0", "1", "passed", "in"],
    ]
