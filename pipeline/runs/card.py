"""The README of a run folder: a dataset card that Hugging Face `datasets` understands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from dhr_batch.pipeline.markdown import table_lines
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.pipeline.tables.schemas import TABLES
from dhr_batch.stages import registry

NAME = "README.md"
_TEXT = """
# {name}

Made by dhr-batch {version}: {images} images of `{dataset}`, generator `{generator}`.{warning}

{counts}
```python
import dhr_batch
run = dhr_batch.open("{folder}")
run.ids, run.latents, run.metrics
```

```python
from datasets import load_dataset
images = load_dataset("{folder}", "images", split="train")
```

Pictures of kind `edit` are edited by dhr-batch; their PNG metadata name the edit and its strength.
Faces are personal data: consent and the licences of the photographs and models bind who uses them.
"""


def write_card(
    place: str | Path | Storage, plan: StoredPlan, images: int, rows: Mapping[str, int]
) -> bool:
    """Write README.md into a run, with one `configs:` entry per table that has rows.

    False, and nothing is written, where it was not a run that wrote the file of this name.

    plan: its settings. images: planned. rows: by table, as the manifests say, since one request per
    table and shard takes minutes in an object store. `datasets` cannot load a table without any
    row, so such tables are left out.
    """
    run = connect(place)
    counts = {table: rows[table] for table in TABLES if table in rows}
    head = {
        "configs": [
            {"config_name": table, "data_files": f"{table}/part-*.parquet"}
            for table, count in counts.items()
            if count
        ]
    }
    generator = registry.label(plan.settings.generator)
    text = _TEXT.format(
        name=run.name,
        folder=run.place if "://" in run.place else run.name,
        version=plan.fingerprint.version,
        images=images,
        dataset=plan.dataset,
        generator=generator,
        warning=" **Random weights: no picture or number means anything.**"
        if generator == "tiny"
        else "",
        counts="\n".join(
            table_lines(["table", "rows"], ([name, str(n)] for name, n in counts.items()))
        ),
    )
    content = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}".encode()
    return Owned(run, RUN).write(NAME, content)
