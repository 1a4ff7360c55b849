"""The README.md of a run folder: a dataset card that Hugging Face `datasets` understands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from dhr_batch.pipeline.markdown import escaped, table_lines
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.pipeline.tables.schemas import TABLES
from dhr_batch.stages import registry

NAME = "README.md"
_TEXT = """
# {name}

Made by dhr-batch {version}: {images} images of {dataset}, generator {generator}.{warning}

{counts}
```python
import dhr_batch
run = dhr_batch.open({folder})
run.ids, run.latents, run.metrics
```

```python
from datasets import load_dataset
images = load_dataset({folder}, "images", split="train")
```

Pictures of kind `edit` were edited by dhr-batch; their PNG metadata name the edit and its strength.
Faces are personal data: use them only as the consent of the people shown and the licences of the
photographs and models allow.
"""


def write_card(
    place: str | Path | Storage, plan: StoredPlan, images: int, rows: Mapping[str, int]
) -> bool:
    """Write README.md into a run, with one `configs:` entry for each table that has rows.

    `datasets` cannot load a table without rows, so such tables are left out.

    Args:
        place: The run.
        plan: Its stored plan.
        images: The number of planned images.
        rows: The number of rows of each table according to the manifests. Reading the tables
            instead would take minutes in an object store, with one request per table and shard.

    Returns:
        Whether the file was written. An existing README.md that a user wrote is kept.
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
        name=escaped(run.name),
        folder=json.dumps(run.place if "://" in run.place else run.name, ensure_ascii=False),
        version=plan.fingerprint.version,
        images=images,
        dataset=escaped(plan.dataset),
        generator=escaped(generator),
        warning=" **Random weights: no picture or number means anything.**"
        if generator == "tiny"
        else "",
        counts="\n".join(
            table_lines(["table", "rows"], ([name, str(n)] for name, n in counts.items()))
        ),
    )
    content = f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}".encode()
    return Owned(run, RUN).write(NAME, content)
