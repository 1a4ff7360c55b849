"""Small files of every kind that others write, sound and odd ones, for tests to damage."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageCms
from safetensors.torch import save

from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

NAME = "it.png"


def yaml_seeds() -> list[bytes]:
    bomb = "a0: &a0 [x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    texts = [bomb, "seed: 2020-99-99\n", "[" * 300, "name: mine\nroot: photos\naligned: true\n"]
    texts += ["seed: 3\nembed: {name: w+, steps: 2}\n"]
    texts += ["embed: {steps: 2, name: w}\n<<: &b {seed: 1}\nrefine: *b\n", "seed: 1:2:3:4.5\n"]
    texts += [
        "name: x\nrole: r\nsource: {kind: file, path: ~/x}\n",
        "a: !!binary aGk=\nb: !!set {c}\n",
    ]
    model = Path(catalogue.__file__).parents[2] / "configs/models/arcface-irse50.yaml"
    return [text.encode() for text in texts] + ["name: mine\n".encode("utf-16"), model.read_bytes()]


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def tar_seeds() -> list[bytes]:
    end, good = b"\0" * 1024, tar_header(NAME, 3) + padded(b"abc")
    pax = padded(b"13 size=-512\n")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("é" * 200 + NAME))
    return [
        good + tar_header(NAME, -512) + end,
        good + tar_header("l", 2**33, tarfile.GNUTYPE_LONGNAME) + b"A" * 512 + end,
        tar_header("pax", 13, tarfile.XHDTYPE) + pax + good + end,
        good + good + end + good + end,
        stream.getvalue(),
    ]


def parquet_seeds() -> list[bytes]:
    images = [{"bytes": b"image" * 9, "path": f"{i}.png"} for i in range(5)]
    tables = [
        pa.table({"image": images, "label": [1, 2, 3, 4, 5], "id": list("abcde")}),
        pa.table({"a.bytes": pa.array([b"1", None, b"3"], pa.binary()), "id": ["x", "y", "z"]}),
        pa.table([pa.array([b"1"]), pa.array([b"2"])], names=["image", "image"]),
    ]
    found = []
    for table in tables:
        for compression in ("zstd", "none"):
            stream = io.BytesIO()
            pq.write_table(table, stream, compression=compression, row_group_size=2)
            found.append(stream.getvalue())
    return found


def npy(header: str, data: bytes = b"") -> bytes:
    content = header.encode()
    content += b" " * (-(len(content) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(content)) + content + data


def npy_seeds() -> list[bytes]:
    start = "{'descr': '<f4', 'fortran_order': False, 'shape': "
    whole = npy(start + "(1, 512), }", np.ones(512, "f4").tobytes())
    return [whole, npy(start + "(10, "), npy(start + "(512L, "), npy("(" * 900)]


def npz_seeds() -> list[bytes]:
    found = []
    for write in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        write(stream, a=np.ones((1, 512), "f4"))
        found.append(stream.getvalue())
    return found


def pickles() -> list[Any]:
    state = {"style.1.weight": torch.ones(1).expand(4, 4), 3: torch.zeros(2, 3)[:, 1]}
    extra = Namespace(size=32, path=Path("/x"), rate=np.float64(0.5))
    return [{"g_ema": state, "args": extra}, [np.ones(3), np.arange(4.0).reshape(2, 2).T], state]


class Archive:
    """A file of torch, of which only the pickle is damaged."""

    def __init__(self, value: Any) -> None:
        stream = io.BytesIO()
        torch.save(value, stream)
        with zipfile.ZipFile(stream) as archive:
            self._parts = {name: archive.read(name) for name in archive.namelist()}
        self._pickle = next(name for name in self._parts if name.endswith("/data.pkl"))
        self.seeds = [self._parts[self._pickle]]

    def wrap(self, pickled: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in (self._parts | {self._pickle: pickled}).items():
                archive.writestr(name, data)
        return stream.getvalue()


def generator_state() -> dict[str, torch.Tensor]:
    """Return a generator in rosinality's layout. Repeated columns keep the file small."""
    net = stylegan2_layouts.named_tensors(StyleGAN2((1, 1, 1, 1), mapping_layers=1))
    state = {"style.1.weight": torch.ones(512, 1).expand(512, 512), "style.1.bias": torch.ones(512)}
    for name, value in net.items():
        layer, _, last = name.rpartition(".")
        if name.startswith(("convs", "conv1", "to_rgb")):
            inner = "" if last == "bias" and not layer.endswith("modulation") else "conv."
            key = f"{layer.removesuffix('modulation')}".rstrip(".") + f".{inner}"
            key += f"modulation.{last}" if layer.endswith("modulation") else last
            state[key.replace("conv.noise_strength", "noise.weight")] = value.data
        elif name == "input":
            state["input.input"] = value.data
    return state


def torch_files() -> list[bytes]:
    found = []
    for value in pickles():
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=zipped)
            found.append(stream.getvalue())
    return found


def plain_pickles() -> list[bytes]:
    return [pickle.dumps(value, protocol) for value in pickles()[1:] for protocol in (0, 2, 4, 5)]


def safetensors_seeds() -> list[bytes]:
    net = stylegan2_layouts.named_tensors(StyleGAN2((1, 1, 1, 1), mapping_layers=0))
    tensors = {name: value.data.contiguous() for name, value in net.items()}
    return [save(tensors, {"format": stylegan2_layouts.FORMAT, "resolution": "32"}), save(tensors)]


def pictures() -> dict[str, list[bytes]]:
    """Return small pictures by format, as cameras and editors write them."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    writers: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [
            (image, {"exif": exif, "icc_profile": profile}),
            (image.convert("CMYK"), {"progressive": True}),
        ],
        "PNG": [(image.convert("P"), {"icc_profile": profile}), (image.convert("I;16"), {})],
        "TIFF": [
            (image, {"compression": "tiff_lzw"}),
            (image, {"compression": "jpeg"}),
            (image.convert("1"), {"compression": "group4"}),
        ],
        "GIF": [(image, {"save_all": True, "append_images": [image.rotate(90)]})],
        "BMP": [(image, {}), (image.convert("P"), {})],
        "WEBP": [(image, {"exif": exif}), (image, {"lossless": True})],
        "JPEG2000": [(image, {})],
        "AVIF": [(image, {"icc_profile": profile})],
        "PPM": [(image, {})],
    }
    found = {}
    for name, several in writers.items():
        found[name] = []
        for picture, options in several:
            stream = io.BytesIO()
            picture.save(stream, name, **options)
            found[name].append(stream.getvalue())
    deep = np.asarray(image).astype(np.uint16) * 257
    found["JPEG2000"].append(imagecodecs.jpeg2k_encode(deep, level=30))
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=90)
    return found | {"HEIF": [stream.getvalue()]}
