"""Datasets by name, folder or URL, and the list of their images."""

from __future__ import annotations

import difflib
import glob
import logging
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dhr_batch.pipeline.datasets import celebahq, listing, portraits
from dhr_batch.pipeline.datasets.items import (
    DatasetError,
    Format,
    Item,
    Listing,
    Rules,
    left_out,
)
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.storage.locations import is_url, join
from dhr_batch.pipeline.strict import Strict, reasons
from dhr_batch.stages import yaml_files

# The extensions of `refusals.FORMATS`.
EXTENSIONS = (
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif",
    ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo",
    ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip

log = logging.getLogger(__name__)


class Dataset(Strict):
    """The description of a dataset.

    Attributes:
        root: A folder, a .tar or .parquet file, or the URL of one.
        aligned: Whether the images are FFHQ crops.
        split: The name of the split, which is stored with each image.
        extensions: Extensions of images.
        exclude: Globs of files and folders that are left out, also in archives. One without a slash
            is compared with names, another one with paths below `root`.
        recursive: Whether subfolders are listed.
        format: How a folder is read. `auto` reads images, or archives if there are no images.
        column: Column of the images in Parquet files.
        id_column: Column of the ids in Parquet files.
        archive_in_id: Whether ids begin with the name of the tar file.
        images: The expected number of images; None if it is unknown.
        note: How to get the dataset.
        config: Settings of a run that this dataset changes.
        prepare: `portraits` for the embedded photographs, which are copied to the cache.
        select: `celebahq-test` selects the test split from CelebAMask-HQ.
    """

    name: str
    description: str = ""
    root: str | None = None
    aligned: bool = False
    split: str = ""
    extensions: tuple[str, ...] = EXTENSIONS
    exclude: tuple[str, ...] = ()
    recursive: bool = True
    format: Format = "auto"
    column: str | None = None
    id_column: str | None = None
    archive_in_id: bool = False
    images: int | None = None
    licence: str = "not stated"
    note: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    prepare: Literal["portraits"] | None = None
    select: Literal["celebahq-test"] | None = None

    @property
    def location(self) -> str:
        """`root`, or the folder in which a dataset without `root` is expected."""
        if self.root is not None:
            return self.root
        if self.prepare:
            return str(catalogue.home() / "datasets" / self.name)
        data = os.environ.get("DHR_BATCH_DATA", str(catalogue.home() / "data"))
        return join(data if is_url(data) else os.path.expanduser(data), self.name)


def _described(file: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """Read the settings of a dataset from a YAML file, over settings that it may leave out."""
    reason, way_out = "", "correct the file"
    try:
        given = yaml_files.read(file)
        if isinstance(given, dict):
            settings = defaults | {"name": file.stem} | given
            root = Dataset.model_validate(settings).root
            if root is not None:
                _require_store(root)
                settings["root"] = _relative_to(root, file.parent)
            return settings
        reason = f"it has no settings, only {yaml_files.shown(given)}"
    except yaml_files.InvalidYaml as error:
        reason, way_out = error.reason, error.way_out
    except ValidationError as error:
        reason = reasons(error, Dataset)
    except OSError as error:
        reason = error.strerror or str(error)
    raise DatasetError(str(file), f"it does not describe a dataset: {reason}", way_out)


def _require_store(place: str) -> None:
    """Refuse the address of a web page. Requests to it would be repeated for a minute."""
    if place.lower().startswith(("http://", "https://")):
        raise DatasetError(
            place,
            "photographs are not downloaded from web pages",
            "download them first, or give the URL of an object store: s3://, gs:// or az://",
        )


def _relative_to(root: str, folder: Path) -> str:
    return root if is_url(root) else str(folder / os.path.expanduser(root))


def datasets() -> dict[str, Dataset]:
    """Return all datasets by name: the shipped ones and those in `datasets.d` of the cache folder.

    A file in `datasets.d` with the name of a shipped dataset changes only the settings it contains,
    for example `root`. Files that do not describe a dataset are left out (see `broken`).
    """
    return _all()[0]


def broken() -> dict[str, DatasetError]:
    """Return why files in `datasets.d` do not describe the datasets of their names."""
    return _all()[1]


def _all() -> tuple[dict[str, Dataset], dict[str, DatasetError]]:
    found: dict[str, dict[str, Any]] = {}
    bad: dict[str, DatasetError] = {}
    shipped = Path(__file__).parent.parent.parent / "configs" / "datasets"
    for folder in (shipped, catalogue.home() / "datasets.d"):
        for file in yaml_files.in_folder(folder):
            try:
                found[file.stem] = _described(file, found.get(file.stem, {}))
            except DatasetError as error:
                bad[file.stem] = error
    good = {name: Dataset(**found[name]) for name in sorted(found) if name not in bad}
    return good, bad


def find(name_or_path: str | Path) -> Dataset:
    """Return the dataset of a name, a folder, a .tar or .parquet file, a URL or a YAML description.

    A dataset takes precedence over a folder of the same name; write `./name` for the folder. The
    images are not listed; `list_images` does that.

    Raises:
        DatasetError: If there is no such dataset, folder or file.
    """
    text = str(name_or_path)
    known, bad = _all()
    if text in bad:
        raise bad[text]
    if text in known:
        return known[text]
    if is_url(text):
        _require_store(text)
        return Dataset(name=_name(text), root=text)
    path = Path(os.path.expanduser(text))
    if path.is_dir() or (path.is_file() and listing.is_archive(text)):
        return Dataset(name=_name(str(path.resolve())), root=str(path.resolve()))
    if path.is_file() and path.suffix in {".yaml", ".yml"}:
        return Dataset(**_described(path.resolve(), {}))
    if path.is_file():
        raise DatasetError(
            text,
            "it is a file of another kind",
            "give the folder it lies in, or a .tar, .parquet or .yaml file; unpack other archives; "
            "`dhr-batch edit` takes single photographs",
        )
    if glob.has_magic(text):
        raise DatasetError(
            text,
            "there is no such folder, and wildcards in names are not expanded",
            "give the folder; `exclude` in a description of the dataset leaves out a part of it",
        )
    if path.is_absolute() or os.sep in text or listing.extension(text):
        raise DatasetError(
            text,
            "it does not exist",
            "give a folder or file of photographs, or the name of a dataset",
        )
    close = difflib.get_close_matches(text, known, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DatasetError(
        f"unknown dataset {text!r}{hint}",
        way_out=(
            f"choose from: {', '.join(known)}; or give a folder, a .tar or .parquet file, or a URL"
        ),
    )


def _name(place: str) -> str:
    if is_url(place):
        # A user and a password may stand before the host, and a signature behind the path.
        place = place.partition("?")[0].replace("@", "/")
    last = place.rstrip("/").rpartition("/")[2]
    return last.removesuffix(listing.extension(last)) if listing.is_archive(place) else last


def list_images(dataset: Dataset) -> list[Item]:
    """Return all images of a dataset in the order of the plan (see `listed`)."""
    return listed(dataset).items


def listed(dataset: Dataset) -> Listing:
    """List a dataset (see `listing.scan`).

    Raises:
        DatasetError: If the location does not exist or contains no images.
        StorageError: If the storage is unavailable.
        ModelMissing: If embedded photographs were not downloaded.
    """
    found = scan(dataset)
    place = dataset.location
    if not found.items:
        kinds = left_out(found.ignored)
        others = f"; left out: {kinds}" if kinds else ""
        allowed = " ".join(sorted(dataset.extensions))
        raise DatasetError(
            f"no images in {place} (extensions {allowed}){others}",
            way_out="choose a folder, archive or URL with images",
        )
    if dataset.images not in (None, len(found.items)):
        log.warning(
            "%s: %d images in %s, expected %d",
            dataset.name,
            len(found.items),
            place,
            dataset.images,
        )
    return found


def scan(dataset: Dataset) -> Listing:
    """List a dataset like `listed`, but allow no images."""
    if dataset.prepare:
        portraits.prepare(Path(dataset.location))
    root = dataset.location
    if not (is_url(root) or Path(root).is_dir() or listing.is_archive(root)):
        raise _how_to_get(dataset)
    rules = Rules(
        extensions=frozenset(extension.lower() for extension in dataset.extensions),
        format=dataset.format,
        recursive=dataset.recursive,
        column=dataset.column,
        id_column=dataset.id_column,
        archive_in_id=dataset.archive_in_id,
        exclude=dataset.exclude,
    )
    return celebahq.scan(root, rules) if dataset.select else listing.scan(root, rules)


def _how_to_get(dataset: Dataset) -> DatasetError:
    what, why = f"dataset {dataset.name!r}", f"the folder {dataset.location} does not exist"
    if dataset.root is not None:
        return DatasetError(what, why, dataset.note)
    setting = catalogue.home() / "datasets.d" / f"{dataset.name}.yaml"
    way_out = (
        f"{dataset.note} For another place, set DHR_BATCH_DATA to the folder that contains "
        f"{dataset.name}/, or write 'root: FOLDER' into {setting}"
    )
    return DatasetError(what, why, way_out)


class DatasetStatus(Strict):
    """The entry of one dataset in `datasets list`.

    Attributes:
        found: Number of images listed. They are not checked.
        images: The expected number of images; None if it is unknown.
        message: Why the dataset cannot be used, and the remedy.
    """

    name: str
    state: Literal["ready", "missing", "broken"]
    found: int
    images: int | None
    aligned: bool
    split: str
    folder: str
    licence: str
    description: str
    message: str = ""


def dataset_statuses() -> list[DatasetStatus]:
    """Return the status of every dataset, sorted by name, with files that describe none."""
    known, bad = _all()
    found = [_status(dataset) for dataset in known.values()] + [
        DatasetStatus(
            name=name, state="broken", found=0, images=None, aligned=False, split="",
            folder=error.what, licence="", description="", message=str(error),
        )
        for name, error in bad.items()
    ]  # fmt: skip
    return sorted(found, key=lambda status: status.name)


def _status(dataset: Dataset) -> DatasetStatus:
    state: Literal["ready", "missing"] = "ready"
    found, message = 0, ""
    try:
        found = len(list_images(dataset))
    except CommandError as error:
        state, message = "missing", str(error)
    except OSError as error:
        state, message = "missing", f"{error.filename}: {error.strerror}"
    return DatasetStatus(
        **dataset.model_dump(include=set(DatasetStatus.model_fields) - {"folder"}),
        state=state,
        found=found,
        folder=without_secrets(dataset.location),
        message=message,
    )
