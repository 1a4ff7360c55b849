"""The README of a run folder: a dataset card that Hugging Face `datasets` understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from dhr_batch.pipeline.commit import replace
from dhr_batch.pipeline.schemas import TABLES

_TEXT = """
# {name}

Made by dhr-batch {version}: {images} images of `{dataset}`, generator `{generator}`.{warning}

| table | rows |
|---|---|
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


def write(root: Path, plan: dict[str, Any]) -> Path:
    """Write README.md into a run folder, with one `configs:` entry per table that has rows.

    `datasets` cannot load a table without any row, so such tables are left out.
    """
    counts = {table: _rows(root / table) for table in TABLES if (root / table).is_dir()}
    head = {
        "configs": [
            {"config_name": table, "data_files": f"{table}/part-*.parquet"}
            for table, rows in counts.items()
            if rows
        ]
    }
    generator = plan["config"]["generator"]
    text = _TEXT.format(
        name=root.resolve().name,
        folder=root.resolve().name,
        version=plan["fingerprint"]["version"],
        images=sum(len(shard) for shard in plan["shards"]),
        dataset=plan["dataset"],
        generator=generator,
        warning=" **Random weights: no picture or number means anything.**"
        if generator == "tiny"
        else "",
        counts="\n".join(f"| {table} | {rows} |" for table, rows in counts.items()),
    )
    path = root / "README.md"
    replace(path, f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{text}".encode())
    return path


def _rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("part-*.parquet"))
