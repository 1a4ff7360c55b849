"""The same pictures from any place, in one run or in two, give the same rows."""

from __future__ import annotations

import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import dhr_batch
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.tests.faults import driven

IDS = ["a.png", "b/1.png", "b/2.png"]
TINY = {"preset": "tiny", "gpus": 0, "shard_size": 2, "workers": 1}


def compute(
    settings: dict[str, Any], out: Path, *sets: str, ray: bool = False, **how: bool
) -> None:
    request = Request(
        TINY | settings,
        sets=["edit.edits=[]", *sets],
        out=out,
        report=False,
        progress="plain",
        **how,
    )
    with nullcontext() if ray else driven.without_ray():
        assert runner.run(prepare(request), request).exit_code == runner.DONE, out


def test_rows_do_not_depend_on_where_the_pictures_lie(
    tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_environment.items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / "pictures"
    for number, name in enumerate(IDS):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(folder, ".")
    rows = [(folder / name).read_bytes() for name in IDS]
    pq.write_table(pa.table({"jpg": rows}), tmp_path / "pictures.parquet", row_group_size=2)
    places = {
        "folder": str(folder),
        "tar": str(tmp_path / "pictures.tar"),
        "parquet": str(tmp_path / "pictures.parquet"),
        "s3": _uploaded(folder, s3_environment),
    }
    for name, place in places.items():
        description = tmp_path / f"{name}.yaml"
        description.write_text(f"root: {place}\naligned: true\n")
        # Workers of Ray must know the object store as well.
        compute({"dataset": str(description)}, tmp_path / f"{name}.out", ray=name == "s3")
    dataset = {"dataset": str(tmp_path / "folder.yaml")}
    for name, sets, how in (
        ("grown", [], {"extend": True}),
        ("anew", ["embed.steps=1"], {"fresh": True, "confirmed": True}),
    ):
        compute(dataset | {"limit": 2}, tmp_path / f"{name}.out", *sets)
        compute(dataset, tmp_path / f"{name}.out", **how)
    codes = {}
    for name in (*places, "grown", "anew"):
        run = dhr_batch.open(tmp_path / f"{name}.out")
        assert list(run.ids) == (IDS if name != "parquet" else [f"{n:08d}" for n in range(3)])
        assert len(run.quarantine) == 0
        codes[name] = np.stack([run.latents[image_id] for image_id in run.ids])
        np.testing.assert_array_equal(codes[name], codes["folder"], err_msg=name)
    assert len(np.unique(codes["folder"][:, 0], axis=0)) == len(IDS)


def _uploaded(folder: Path, environment: dict[str, str]) -> str:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )
    client.create_bucket(Bucket="pictures")
    for name in IDS:
        client.upload_file(str(folder / name), "pictures", f"v1/{name}")
    return "s3://pictures/v1"
