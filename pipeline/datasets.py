"""Named datasets and folders of photographs, and the list of their images."""

from __future__ import annotations

import difflib
import logging
import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from dhr_batch.pipeline import models
from dhr_batch.pipeline.model_spec import Strict

EXTENSIONS = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

log = logging.getLogger(__name__)


class DatasetError(ValueError):
    """A dataset cannot be used; the message says why and what to do."""


class UnknownDataset(DatasetError):
    """Neither a configured name nor a folder; the message lists the valid names."""


class Dataset(Strict):
    """A folder of photographs and what is known about it.

    aligned: images are FFHQ crops already. images: how many there should be, where known.
    config: settings of a run that this dataset changes. prepare: `portraits` for the embedded
    photographs, which are put together in the cache.
    """

    name: str
    description: str = ""
    root: Path | None = None
    aligned: bool = False
    split: str = ""
    extensions: tuple[str, ...] = EXTENSIONS
    recursive: bool = True
    images: int | None = None
    licence: str = "not stated"
    note: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    prepare: Literal["portraits"] | None = None

    @property
    def folder(self) -> Path:
        """`root`; for a dataset without one, where it is looked for."""
        if self.root is not None:
            return self.root
        if self.prepare:
            return models.home() / "datasets" / self.name
        return (
            Path(os.environ.get("DHR_BATCH_DATA", models.home() / "data")).expanduser() / self.name
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One image file. image_id: its path relative to the root, '/' separators, NFC."""

    image_id: str
    path: Path


def _described(file: Path, before: dict[str, Any]) -> dict[str, Any]:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = before | {"name": file.stem} | given
        if settings.get("root"):
            settings["root"] = file.parent / Path(settings["root"]).expanduser()
        Dataset.model_validate(settings)
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise DatasetError(f"{file} does not describe a dataset: {error}") from error
    return settings


def datasets() -> dict[str, Dataset]:
    """Shipped datasets by name, changed and joined by `datasets.d/*.yaml` of the cache folder.

    A file there named as a shipped dataset changes only the settings it has, for instance `root`.
    """
    found: dict[str, dict[str, Any]] = {}
    shipped = Path(__file__).parent.parent / "configs" / "datasets"
    for folder in (shipped, models.home() / "datasets.d"):
        for file in sorted(folder.glob("*.yaml")):
            found[file.stem] = _described(file, found.get(file.stem, {}))
    return {name: Dataset(**settings) for name, settings in sorted(found.items())}


def find(name_or_path: str | Path) -> Dataset:
    """A configured dataset, a folder, or the YAML description of a dataset.

    A configured name wins over a folder of that name; write `./name` for the folder. Whether the
    images are there is checked by `list_images`. Raises UnknownDataset.
    """
    text = str(name_or_path)
    known = datasets()
    if text in known:
        return known[text]
    path = Path(text).expanduser()
    if path.is_dir():
        return Dataset(name=path.resolve().name, root=path.resolve())
    if path.is_file() and path.suffix in {".yaml", ".yml"}:
        return Dataset(**_described(path.resolve(), {}))
    if path.is_file():
        raise UnknownDataset(f"{text} is a file; give the folder it lies in")
    if path.is_absolute() or len(path.parts) > 1:
        raise UnknownDataset(f"there is no folder {text}")
    close = difflib.get_close_matches(text, known, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UnknownDataset(
        f"unknown dataset {text!r}{hint}; choose from: {', '.join(known)}; or give a folder"
    )


def list_images(dataset: Dataset) -> list[Item]:
    """All images of a dataset, sorted by image_id.

    A file is an image by its extension; hidden files and folders are left out. Raises DatasetError
    where the folder is absent or has no images, and ModelMissing for embedded photographs that
    were not pulled.
    """
    root = _prepare_portraits(dataset) if dataset.prepare else dataset.folder
    if not root.is_dir():
        raise DatasetError(_how_to_get(dataset))
    items: dict[str, Item] = {}
    ignored: Counter[str] = Counter()
    allowed = {extension.lower() for extension in dataset.extensions}
    for path in _files(root, dataset.recursive):
        if path.suffix.lower() not in allowed:
            ignored[path.suffix.lower() or "no extension"] += 1
            continue
        item = Item(image_id_of(path, root), path)
        if other := items.get(item.image_id):
            raise DatasetError(
                f"{other.path!s} and {path!s} have the same id {item.image_id!r} after Unicode "
                "normalisation; rename one of them"
            )
        items[item.image_id] = item
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
    if not items:
        there = f"; other files there: {kinds}" if kinds else ""
        raise DatasetError(f"no images in {root} (extensions {' '.join(sorted(allowed))}){there}")
    if kinds:
        log.info("%s: ignored files that are not images by extension: %s", root, kinds)
    if dataset.images not in (None, len(items)):
        log.warning(
            "%s: %d images in %s, expected %d", dataset.name, len(items), root, dataset.images
        )
    return [items[image_id] for image_id in sorted(items)]


def image_id_of(path: Path, root: Path) -> str:
    """NFC path relative to the root with '/' separators; bytes that are not UTF-8 as `\\udcNN`."""
    text = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _files(root: Path, recursive: bool) -> Iterator[Path]:
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        visible = [name for name in sorted(subfolders) if not name.startswith(".")]
        subfolders.clear()
        for name in visible if recursive else []:
            # A link to a folder above would otherwise be followed for ever.
            real = os.path.realpath(os.path.join(folder, name))
            if real not in seen:
                seen.add(real)
                subfolders.append(name)
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _how_to_get(dataset: Dataset) -> str:
    if dataset.root is not None:
        return (
            f"dataset {dataset.name!r}: there is no folder {dataset.root}. {dataset.note}".strip()
        )
    setting = models.home() / "datasets.d" / f"{dataset.name}.yaml"
    return (
        f"dataset {dataset.name!r}: there is no folder {dataset.folder}. {dataset.note} "
        f"Another place: set DHR_BATCH_DATA to the folder that contains {dataset.name}/, or write "
        f"'root: FOLDER' into {setting}"
    )


def _prepare_portraits(dataset: Dataset) -> Path:
    """Put the embedded photographs into one folder, once. Raises ModelMissing."""
    pulled = models.path("portraits")
    files = {name: pulled / name for name in models.find("portraits").files()}
    folder = dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != source.stat().st_size:
            _write(folder / name, source.read_bytes())
    if not (folder / "astronaut.png").is_file():
        _write(folder / "astronaut.png", _astronaut())
    return folder


def _astronaut() -> bytes:
    from io import BytesIO

    from PIL import Image
    from skimage import data

    buffer = BytesIO()
    Image.fromarray(data.astronaut()).save(buffer, "PNG")
    return buffer.getvalue()


def _write(target: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


class DatasetStatus(Strict):
    """A dataset's line in `datasets list`. found: images now there, without a check of each."""

    name: str
    state: Literal["ready", "missing"]
    found: int
    images: int | None
    aligned: bool
    split: str
    folder: str
    licence: str
    description: str
    message: str = ""


def listing() -> list[DatasetStatus]:
    """Every configured dataset and whether it can be used, sorted by name."""
    return [_status(dataset) for dataset in datasets().values()]


def _status(dataset: Dataset) -> DatasetStatus:
    state: Literal["ready", "missing"] = "ready"
    found, message = 0, ""
    try:
        found = len(list_images(dataset))
    except (DatasetError, models.ModelMissing) as error:
        state, message = "missing", str(error)
    return DatasetStatus(
        **dataset.model_dump(include=set(DatasetStatus.model_fields) - {"folder"}),
        state=state,
        found=found,
        folder=str(dataset.folder),
        message=message,
    )
