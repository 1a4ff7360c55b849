"""The dataset card of an export: how to load it, its content, and its origin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.export.choice import TRAIN, VALIDATION
from dhr_batch.pipeline.export.gather import measured_identity
from dhr_batch.pipeline.export.marks import EXTENSIONS
from dhr_batch.pipeline.export.options import ExportOutcome, Options
from dhr_batch.pipeline.export.target import identity
from dhr_batch.pipeline.markdown import escaped, table_lines
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages import registry

# In the folder of the export. The library names a dataset after its folder, for which "." is none.
_DATASETS = """
from pathlib import Path

from datasets import load_dataset

{split} = load_dataset(str(Path.cwd()), split="{split}")
"""
_FOLDER = """
from torchvision.datasets import ImageFolder

{split} = ImageFolder("{split}", allow_empty=True)  # the folders are the classes
"""
_WEBDATASET = """
from glob import glob

from webdataset import WebDataset

files = sorted(glob("{split}-*.tar"))
{split} = WebDataset(files, shardshuffle=False).decode("pil").to_tuple("{extension}", "cls", "json")
"""
_STYLEGAN = """
# StyleGAN2-ADA, StyleGAN3: python train.py --data={split}.zip --cond=1
import json
from zipfile import ZipFile

{split} = ZipFile("{split}.zip")
labels = json.loads({split}.read("dataset.json"))["labels"]  # names of pictures and classes
"""
_LOAD = {
    "imagefolder": (_DATASETS, _FOLDER),
    "webdataset": (_WEBDATASET,),
    "stylegan-zip": (_STYLEGAN,),
}

_TEXT = """
# {name}

{pictures} pictures of {used} photographs, exported by dhr-batch {version} from its run {run}:
photographs of the dataset {dataset}, inverted, refined and edited with the generator
{generator}.{warning}

**{what}**
Every edited picture says so in its metadata, with its edit and strength: PNG text or EXIF, and XMP
with IPTC's digital source type.

{load}

## Pictures

{counts}
| label | meaning |
|---|---|
| `label` | the class: edit and strength, `refined`, or `source` (the photograph) |
| `image_id` | the photograph in its dataset; further faces of it have `#1`, `#2`, ... |
| `kind`, `edit`, `strength` | `edit`, `refined` or `source`; multiples of the direction |
| `effect` | change of the edit's own score against the photograph; `yaw` in degrees; 0 for \
`source`, missing for `refined` |
| `identity` | {identity} |
| `score_*` | scores of this picture by landmarks and networks (`stages/measure/face_scores.py`, \
`judges.py`); `score_gender` and `score_age` are estimates of how a face looks |
| `change_*` | change of each score against the photograph: the effect of the edit and its side \
effects, such as years of `change_age` |

Missing values were not measured. Measured labels are only as accurate as the measurement.
{split}

## What was left out

{dropped}

## Provenance

{models}
Settings of the run and of this export are in the head of this file, under `dhr_batch`.

## Rights

- Photographs: {licence}
- Generator {generator}: {generator_licence}

Faces are personal data: the consent of the people shown and the licences of photographs and models
apply to every use of this dataset. The file NOTICE of dhr-batch names the licence of every model.
Keep the marks of edited pictures when you pass them on.
"""


def text(
    run: Run,
    options: Options,
    outcome: ExportOutcome,
    classes: Sequence[str],
    columns: Sequence[str],
    data_files: str,
) -> str:
    """Return the text of README.md.

    Args:
        run: The run.
        options: What was exported.
        outcome: The result of the export.
        classes: Names of the classes, in the order of their numbers.
        columns: Names of the other labels.
        data_files: Glob of the files of a split with `{split}` for its name; empty if loaders find
            them without it.
    """
    plan = run.stored
    generator = registry.label(plan.settings.generator)
    known = catalogue.models().get(generator)
    dataset, licence = _photographs(plan)
    splits = [name for name in (TRAIN, VALIDATION) if name in outcome.counts]
    head: dict[str, Any] = {
        "pretty_name": Path(outcome.out).name,
        "license": "other",
        "license_name": "see-section-rights",
        "task_categories": ["image-classification"],
        "size_categories": [_size(outcome.pictures)],
        "tags": ["faces", "edited", "synthetic", "dhr-batch"],
    }
    if data_files:
        files = [{"split": s, "path": data_files.format(split=s)} for s in splits]
        head["configs"] = [{"config_name": "default", "data_files": files}]
    head["dhr_batch"] = {
        "run": identity(plan),
        "version": plan.fingerprint.version,
        "dataset": dataset,
        "photograph_licence": licence,
        "generator": generator,
        "generator_licence": " ".join(known.licence.split()) if known else "not stated",
        "commercial_use": known.commercial_use if known else "not stated",
        "classes": list(classes),
        "labels": list(columns),
        "export": _settings(options),
        "dropped": dict(outcome.dropped.most_common()),
        "settings": _public(plan.fingerprint.config),
    }
    body = _TEXT.format(
        name=escaped(Path(outcome.out).name),
        pictures=outcome.pictures,
        used=outcome.photographs,
        version=plan.fingerprint.version,
        run=escaped(run.storage.name),
        dataset=escaped(dataset),
        generator=escaped(generator),
        warning=" **Random weights: the pictures have no meaning.**" if generator == "tiny" else "",
        what="Edits were put back into the uncropped photographs; `identity`, `effect`, "
        "`score_*` and `change_*` are those of the crop before it was blended in."
        if options.paste_back
        else "Pictures are FFHQ crops, made by a generator unless they are of kind `source`.",
        load=_load(options, splits[0]),
        counts="\n".join(_counts(outcome, classes, splits)),
        identity=_identity(run),
        split=_split(options, outcome),
        dropped="\n".join(_dropped(outcome)),
        models="\n".join(_models(run)),
        licence=escaped(licence),
        generator_licence=escaped(head["dhr_batch"]["generator_licence"]),
    )
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{front}---\n{body}"


def _load(options: Options, split: str) -> str:
    """Return code that loads a split, as blocks of Markdown."""
    codes = _LOAD.get(options.format, (_DATASETS,))
    extension = EXTENSIONS[options.encoding]
    blocks = (code.strip().format(split=split, extension=extension) for code in codes)
    return "\n\n".join(f"```python\n{block}\n```" for block in blocks)


def _photographs(plan: StoredPlan) -> tuple[str, str]:
    """Return name and licence of the dataset; for a run made from another run, of the first one."""
    name = plan.dataset
    try:
        plan = origin.first_plan(plan)
        name = plan.dataset
        return name, " ".join(named.find(plan.settings.dataset).licence.split())
    except (Refused, StorageError):
        return name, "not stated"


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without local folders: of the files of edits, only the names are left."""
    public = json.loads(json.dumps(settings))
    edits = public.get("edit", {}).get("edits")
    for edit in edits if isinstance(edits, list) else ():
        for key in edit.keys() & {"direction", "ganspace", "styleclip", "fs3", "std"}:
            edit[key] = Path(edit[key]).name
    public["generator"] = registry.label(public["generator"])
    return public


def _settings(options: Options) -> dict[str, Any]:
    filters = options.filters
    return {
        "format": options.format,
        "include": list(options.include),
        "edits": list(filters.edits),
        "strengths": [f"{low:g}:{high:g}" for low, high in filters.strengths],
        "min_identity": filters.min_identity,
        "effect": {name: f"{low:g}:{high:g}" for name, (low, high) in filters.effects.items()},
        "max": dict(filters.most),
        "faces_only": filters.faces,
        "balance": options.balance,
        "val": options.validation,
        "person": options.person,
        "seed": options.seed,
        "paste_back": options.paste_back,
        "encoding": options.encoding,
    }


def _counts(outcome: ExportOutcome, classes: Sequence[str], splits: Sequence[str]) -> list[str]:
    rows = (
        [escaped(label), str(number), *(str(outcome.counts[split][label]) for split in splits)]
        for number, label in enumerate(classes)
    )
    return table_lines(["class", "number", *splits], rows)


def _identity(run: Run) -> str:
    network = measured_identity(run)
    if network is None:
        return "not measured"
    name = escaped(network)
    return f"cosine similarity to the photograph's face, by {name}: 1 is the same, higher is closer"


def _split(options: Options, outcome: ExportOutcome) -> str:
    if not options.validation:
        return "All pictures are in one split."
    who = "photograph" if options.person is None else "person"
    count = outcome.used.get(VALIDATION, 0)
    return (
        f"All pictures of one {who} are in one split, chosen by a hash of its name. The "
        f"validation split has {count} of {outcome.photographs} photographs "
        f"({count / outcome.photographs:.1%}; {options.validation:.1%} was requested)."
    )


def _dropped(outcome: ExportOutcome) -> Iterator[str]:
    missing = outcome.planned - outcome.images
    if missing:
        yield f"- {missing} of {outcome.planned} photographs of the run have no rows"
    for reason, count in outcome.dropped.most_common():
        yield f"- {count} pictures: {escaped(reason)}"
    if not missing and not outcome.dropped:
        yield "Nothing."


def _models(run: Run) -> list[str]:
    used = sorted({name for shard in run.parts.manifests.values() for name in shard.models})
    digests, known = run.stored.fingerprint.models, catalogue.models()
    rows = []
    for name in used:
        digest = digests.get(name, "not recorded").replace("+", " ")
        if name in known:
            m = known[name]
            cells = [m.role, digest, m.commercial_use, " ".join(m.licence.split())]
        else:
            cells = ["", digest, "", "not in this version's registry"]
        rows.append(map(escaped, (name, *cells)))
    return table_lines(["model", "role", "start of sha256", "commercial use", "licence"], rows)


def _size(pictures: int) -> str:
    """Return the size category of the Hugging Face Hub."""
    names = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    return next((name for limit, name in names if pictures < limit), "1M<n<10M")
