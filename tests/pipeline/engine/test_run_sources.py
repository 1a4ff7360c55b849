"""The same pictures from any place, in one run or in two, give the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import dhr_batch

IDS = ["a.png", "b/1.png", "b/2.png"]
# One Ray session for all runs, in a process of its own so that workers see the variables.
RUNS = """
import json, sys, ray
from pathlib import Path
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.engine.runner import run
# Not the cluster of another test that happens to run on this machine.
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
for given in json.loads(sys.argv[1]):
    settings = {"preset": "tiny", "gpus": 0, "shard_size": 2, "workers": 1} | given.pop("settings")
    sets = ["edit.edits=[]", *given.pop("sets", [])]
    out = Path(given.pop("out"))
    request = Request(settings, sets=sets, out=out, report=False, progress="plain", **given)
    assert run(prepare(request), request).exit_code == 0, out
"""


def test_rows_do_not_depend_on_where_the_pictures_lie(
    tmp_path: Path, s3_environment: dict[str, str]
) -> None:
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
    requests: list[dict[str, Any]] = []
    for name, place in places.items():
        description = tmp_path / f"{name}.yaml"
        description.write_text(f"root: {place}\naligned: true\n")
        dataset = {"dataset": str(description)}
        requests.append({"settings": dataset, "out": str(tmp_path / f"{name}.out")})
    folder_of = {"dataset": str(tmp_path / "folder.yaml")}
    for name, flag in (("grown", "extend"), ("anew", "fresh")):
        place = {"settings": folder_of, "out": str(tmp_path / f"{name}.out")}
        requests.append(place | {"settings": folder_of | {"limit": 2}})
        requests.append(place | {flag: True, "confirmed": True})
    requests[-2]["sets"] = ["embed.steps=1"]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps(requests)],
        env=os.environ | s3_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
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
