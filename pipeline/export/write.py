"""Write pictures of a run as a labelled training set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export import card as export_card
from dhr_batch.pipeline.export import choice, gather, marks, target
from dhr_batch.pipeline.export.formats import FORMATS, ExportSample, Writer
from dhr_batch.pipeline.export.gather import Gathered
from dhr_batch.pipeline.export.marks import Encoding
from dhr_batch.pipeline.export.options import (
    ExportOutcome,
    Options,
    Splits,
    empty_split,
    why_nothing,
)
from dhr_batch.pipeline.export.pasting import Pasting, opened, pixels, together
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.pipeline.planning.photographs import Lost, Photographs
from dhr_batch.pipeline.runs import results
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.pipeline.storage.base import full_disk
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import require_apart

_COLUMNS = (
    "image_id", "kind", "edit_name", "edit_strength", "image", "quad", "source_width",
    "source_height", "source_sha256",
)  # fmt: skip
# Number of rows of the table `images` that are in memory at a time.
_ROWS = 32


def write_export(
    run_place: str | Path,
    out: Path,
    options: Options,
    tick: Callable[[int, int], object] = lambda done, of: None,
) -> ExportOutcome:
    """Export pictures of a run to a folder. The folder appears when it is complete, or not at all.

    Args:
        run_place: Folder or URL of the run.
        out: The folder to write to.
        options: What to export.
        tick: Called with the number of pictures done and in total.

    Raises:
        Refused: If the options contradict each other, the folder may not be used, no picture is
            left to export, or a split has none and the options are strict.
        NoRun: If there is no run.
        StorageError: If the storage is unavailable.
    """
    if options.paste_back and "refined" in options.include:
        raise Refused(
            "--paste-back",
            "it applies to edits only, not to refined pictures",
            "leave refined out of --include",
        )
    if options.paste_back and options.format == "stylegan-zip":
        raise Refused(
            "--paste-back",
            "it writes photographs of different sizes, but StyleGAN needs squares of one size",
            "choose another --format",
        )
    run = results.open(run_place)
    options = _applicable(options, run)
    out = target.resolved(out, run, options.fresh)
    if options.paste_back and options.dataset:
        require_apart(connect(out), [named.find(options.dataset).location])
    photographs = Photographs(run, options.dataset) if options.paste_back else None
    gathered = gather.gather(run, ("edit", *options.include), options.filters)
    rows = together(gathered) if photographs else {}
    if photographs:
        _drop_lost(gathered, photographs)
    splits = _choose(gathered, options)
    pasting = Pasting(rows, splits, photographs) if photographs else None
    if not splits:
        raise Refused("no picture is left to export", *why_nothing(gathered.dropped))
    _require_splits(options, set(splits.values()))
    outcome = ExportOutcome(str(out), options.validation)
    outcome.dropped, outcome.images = gathered.dropped, gathered.images
    outcome.planned = run.stored.images
    with full_disk(out.parent), target.partial(out) as folder:
        _fill(folder, run, gathered, splits, pasting, options, outcome, tick)
        outcome.left = target.place(folder, out, run)
    return outcome


def _applicable(options: Options, run: Run) -> Options:
    """Turn off the filter `faces` for a run without landmark scores, where no face is known."""
    measure = run.stored.settings.section("measure")
    scores = measure.get("scores", "landmarks")
    measured = [scores] if isinstance(scores, str) else scores
    if measure.get("landmarks", "none") != "none" and "landmarks" in measured:
        return options
    return replace(options, filters=replace(options.filters, faces=False))


def _drop_lost(gathered: Gathered, photographs: Photographs) -> None:
    """Drop the pictures whose photograph cannot be found."""
    kept = set()
    for picture in gathered.pictures():
        try:
            photographs.item(picture.source)
        except Lost as error:
            gathered.dropped[str(error)] += 1
        else:
            kept.add(picture)
    gathered.keep(kept)


def _choose(gathered: Gathered, options: Options) -> Splits:
    """Return the split of each chosen picture, and count the pictures that balancing drops."""
    splits = {}
    for picture in gathered.pictures():
        who = choice.person(picture.source, options.person)
        splits[picture] = choice.side(who, options.validation, options.seed)
    if options.balance and splits:
        by = choice.parse_balance(options.balance)
        chosen, unknown = choice.balance(splits, by, options.seed)
        gathered.dropped[f"{by[0]} not measured"] += unknown
        gathered.dropped[f"balancing {options.balance}"] += len(splits) - unknown - len(chosen)
        gathered.dropped = +gathered.dropped
        gathered.keep(chosen)
        splits = {picture: split for picture, split in splits.items() if picture in chosen}
    return splits


def _require_splits(options: Options, filled: Collection[str]) -> None:
    if options.strict and (why := empty_split(options.validation, filled)):
        raise Refused("--strict", *why)


def _fill(
    folder: Path,
    run: Run,
    gathered: Gathered,
    splits: Splits,
    pasting: Pasting | None,
    options: Options,
    outcome: ExportOutcome,
    tick: Callable[[int, int], object],
) -> None:
    """Write all files of the export, and complete the outcome."""
    scores = sorted({name for picture in splits for name in picture.measured()})
    classes = choice.classes(splits)
    names = [*next(iter(splits)).labels(), *scores]
    format_ = FORMATS[options.format]
    writers: dict[str, Writer] = {}
    extension = marks.EXTENSIONS[options.encoding]
    used: dict[str, set[str]] = {}
    done = 0
    for key, wanted in gathered.parts.items():
        for picture, data in _encoded(run, key, wanted, pasting, options.encoding):
            done += 1
            tick(done, len(splits))
            if isinstance(data, str):
                outcome.dropped[data] += 1
                continue
            split, label = splits[picture], picture.label
            known = picture.measured()
            labels = picture.labels() | {name: known.get(name) for name in scores}
            if split not in writers:
                writers[split] = format_(folder, split, classes, names)
            writers[split].add(ExportSample(picture.key, extension, data, label, labels))
            outcome.counts.setdefault(split, Counter())[label] += 1
            used.setdefault(split, set()).add(picture.source)
    for writer in writers.values():
        writer.close()
    outcome.used = {split: len(ids) for split, ids in used.items()}
    if not outcome.counts:
        raise Refused("no picture could be exported", *why_nothing(outcome.dropped))
    _require_splits(options, outcome.counts)
    card = export_card.text(run, options, outcome, classes, names, format_.data_files)
    target.new_file(folder, "README.md").write_text(card, encoding="utf-8", newline="\n")


def _encoded(
    run: Run,
    key: str,
    chosen: list[Picture],
    pasting: Pasting | None,
    encoding: Encoding,
) -> Iterator[tuple[Picture, bytes | str]]:
    """Iterate over pictures with their encoded bytes, or the reason why there are none."""
    if pasting:
        for whole, result in filter(None, map(pasting.add, _stream(run, key))):
            if isinstance(result, str):
                yield whole, result
            else:
                yield whole, marks.encode(result, encoding, whole)
        return
    by_row = {(p.image_id, gather.KINDS[p.kind], p.edit, p.strength): p for p in chosen}
    if not by_row:
        return
    for row in _stream(run, key):
        name = (row["image_id"], row["kind"], row["edit_name"] or "", row["edit_strength"] or 0.0)
        if picture := by_row.get(name):
            yield picture, _encode_stored(picture, row["image"]["bytes"], encoding)


def _encode_stored(picture: Picture, data: bytes, encoding: Encoding) -> bytes | str:
    try:
        if encoding == "png":
            opened(data, lambda image: image.verify())
            return marks.as_stored(data, picture)
        return marks.encode(pixels(data), encoding, picture)
    except Lost as error:
        return str(error)


def _stream(run: Run, key: str) -> Iterator[dict[str, Any]]:
    with run.parts.open(key) as file:
        # Runs of earlier versions have no content hash.
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(_ROWS, columns=columns):
            yield from batch.to_pylist()
