"""The file formats of an export. Files contain no times or host names, so they are reproducible."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dhr_batch.pipeline.export import target
from dhr_batch.pipeline.tables.schemas import PICTURE

# Size limit of tar and Parquet files, unless one picture is larger. The Hub uses the same limit.
FILE_BYTES = 500 * 10**6
_GROUP_BYTES, _GROUP_ROWS = 64 * 2**20, 1000
_TEXT = ("image_id", "kind", "edit")


class ExportSample(NamedTuple):
    """An encoded picture with its labels.

    Attributes:
        key: A unique name without dots.
        extension: The extension without the dot.
        data: The encoded picture.
        label: The class.
        labels: A value or None for each column.
    """

    key: str
    extension: str
    data: bytes
    label: str
    labels: dict[str, Any]

    def about(self, **more: Any) -> str:
        """Return all labels as one line of JSON."""
        line = {**more, "label": self.label, **self.labels}
        return json.dumps(line, ensure_ascii=False, allow_nan=False)


class Writer(ABC):
    """Writes the pictures of one split, in the order of the calls.

    Args:
        folder: The folder of the export.
        split: Name of the split.
        classes: Names of the classes, in the order of their numbers.
        columns: Names of the other labels. They are numbers except `image_id`, `kind` and `edit`.

    Attributes:
        data_files: Glob of the files of a split for the dataset card; empty if loaders find them
            without it.
    """

    data_files: ClassVar[str] = ""

    def __init__(
        self, folder: Path, split: str, classes: Sequence[str], columns: Sequence[str]
    ) -> None:
        self.folder, self.split, self.columns = folder, split, columns
        self.number = {label: number for number, label in enumerate(classes)}
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Start the first file."""

    def new_file(self, name: str) -> Path:
        """Return the path of a new file of the export."""
        return target.new_file(self.folder, name)

    @abstractmethod
    def add(self, sample: ExportSample) -> None:
        """Write a picture."""

    @abstractmethod
    def close(self) -> None:
        """Finish the last file."""


class ImageFolder(Writer):
    """`SPLIT/LABEL/KEY.png`, as torchvision reads it, and `SPLIT/metadata.jsonl` for `datasets`."""

    def open(self) -> None:
        # torchvision numbers the existing folders, so every split must have the same ones.
        for label in self.number:
            (self.folder / self.split / label).mkdir(parents=True)
        path = self.new_file(f"{self.split}/metadata.jsonl")
        self._list = path.open("w", encoding="utf-8", newline="\n")

    def add(self, sample: ExportSample) -> None:
        name = f"{sample.label}/{sample.key}.{sample.extension}"
        self.new_file(f"{self.split}/{name}").write_bytes(sample.data)
        self._list.write(sample.about(file_name=name) + "\n")

    def close(self) -> None:
        self._list.close()


class WebDataset(Writer):
    """`SPLIT-00000.tar` with `KEY.cls`, `KEY.json` and `KEY.png` of each picture."""

    data_files = "{split}-*.tar"

    def open(self) -> None:
        self._files = 0
        self._next()

    def _next(self) -> None:
        path = self.new_file(f"{self.split}-{self._files:05d}.tar")
        # The GNU format allows names of any length.
        self._tar = tarfile.TarFile(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8")
        self._files += 1

    def add(self, sample: ExportSample) -> None:
        if self._tar.offset and self._tar.offset + len(sample.data) > FILE_BYTES:
            self._tar.close()
            self._next()
        number = b"%d" % self.number[sample.label]
        self._member(f"{sample.key}.cls", number)
        self._member(f"{sample.key}.json", sample.about().encode())
        self._member(f"{sample.key}.{sample.extension}", sample.data)

    def _member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        # Otherwise tarfile keeps about a kilobyte per member.
        self._tar.members.clear()  # type: ignore[attr-defined]

    def close(self) -> None:
        self._tar.close()


class Parquet(Writer):
    """`SPLIT/part-00000.parquet`: a row has a picture, the number of its class and its labels."""

    data_files = "{split}/part-*.parquet"

    def open(self) -> None:
        self._schema = _schema(list(self.number), self.columns)
        self._files = 0
        self._next()

    def _name(self, number: int) -> str:
        return f"{self.split}/part-{number:05d}.parquet"

    def _next(self) -> None:
        path = self.new_file(self._name(self._files))
        path.parent.mkdir(exist_ok=True)
        numbers = ["label", *self.columns]
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            # Encoded pictures cannot be compressed further.
            compression={"image.bytes": "none", "image.path": "zstd"}
            | dict.fromkeys(numbers, "zstd"),
            use_dictionary=list(_TEXT),
            write_page_index=True,
            write_page_checksum=True,
        )
        self._files += 1
        self._rows: list[dict[str, Any]] = []
        self._bytes = self._group = 0

    def add(self, sample: ExportSample) -> None:
        size = len(sample.data)
        if self._bytes and self._bytes + size > FILE_BYTES:
            self._finish()
            self._next()
        elif len(self._rows) >= _GROUP_ROWS or self._group + size > _GROUP_BYTES:
            self._flush()
        image = {"bytes": sample.data, "path": f"{sample.key}.{sample.extension}"}
        self._rows.append({"image": image, "label": self.number[sample.label], **sample.labels})
        self._bytes, self._group = self._bytes + size, self._group + size

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._group = [], 0

    def _finish(self) -> None:
        self._flush()
        self._file.close()

    def close(self) -> None:
        self._finish()


class HuggingFace(Parquet):
    """`data/SPLIT-00000-of-00002.parquet`: the layout of a repository on the Hugging Face Hub."""

    data_files = "data/{split}-*.parquet"

    def _name(self, number: int) -> str:
        return f"data/{self.split}-{number:05d}.parquet"

    def close(self) -> None:
        super().close()
        for number in range(self._files):
            name = self._name(number)
            final = name.replace(".parquet", f"-of-{self._files:05d}.parquet")
            os.replace(self.folder / name, self.new_file(final))


def _schema(classes: list[str], columns: Sequence[str]) -> pa.Schema:
    fields = [("image", PICTURE), ("label", pa.int64())]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": classes},
    }
    for name in columns:
        fields.append((name, pa.string() if name in _TEXT else pa.float64()))
        features[name] = {"_type": "Value", "dtype": "string" if name in _TEXT else "float64"}
    about = json.dumps({"info": {"features": features}})
    return pa.schema(fields).with_metadata({"huggingface": about})


class StyleGANZip(Writer):
    """`SPLIT.zip` in the layout of StyleGAN's dataset tool: numbered pictures and `dataset.json`.

    `dataset.json` is `{"labels": [[name, number of the class], ...]}`. `metadata.jsonl` has all
    labels; trainers ignore it.
    """

    def open(self) -> None:
        self._zip = zipfile.ZipFile(self.new_file(f"{self.split}.zip"), "w")
        self._labels: list[tuple[str, int]] = []
        self._lines: list[str] = []

    def add(self, sample: ExportSample) -> None:
        count = len(self._labels)
        name = f"{count // 1000:05d}/img{count:08d}.{sample.extension}"
        self._store(name, sample.data)
        self._labels.append((name, self.number[sample.label]))
        self._lines.append(sample.about(file_name=name) + "\n")

    def _store(self, name: str, data: bytes | str) -> None:
        self._zip.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)

    def close(self) -> None:
        self._store("dataset.json", json.dumps({"labels": self._labels}))
        self._store("metadata.jsonl", "".join(self._lines))
        self._zip.close()


FORMATS: dict[str, type[Writer]] = {
    "imagefolder": ImageFolder,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "hf": HuggingFace,
    "stylegan-zip": StyleGANZip,
}
