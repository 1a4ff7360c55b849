"""The reopening of finished shards, so that they are computed again (for `quarantine retry`).

The driver holds the lease and first rolls forward what a killed process has left. Then it replaces
`plan.json` by one that allows different contents of the chosen images. After that it withdraws the
manifest of each shard, the reverse of step 3 of the commit protocol (`pipeline/runs/folder.py`). If
it is killed before it withdraws a manifest, the shard is still finished with its old rows; if it is
killed afterwards, the shard is to be computed. The same call then continues with the remaining
shards. The published files stay as they are, so readers see the old rows until step 4 of the new
attempt replaces them, table by table.

One gap remains, which only `dhr-batch verify` detects, as it compares checksums: a late manifest in
an object store, as the commit protocol describes it, is accepted together with the old files of a
reopened shard if these happen to have the sizes that it gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.runs.folder import RunFolder


def reopen(run: RunFolder, images: Mapping[int, Collection[str]]) -> None:
    """Reopen finished shards, so that the next start computes them again.

    The old rows can be read until then. The caller must hold the lease and must have called
    `recover`.

    Args:
        run: The run.
        images: For each shard the images whose files may be different at the next start.

    Raises:
        LeaseLost: If another driver has taken over the run.
    """
    plan = run.started_plan()
    # The lists may be `plan_file.Rows`, which keep only the changed rows apart from the text.
    contents: Any = plan.contents
    for shard, ids in images.items():
        marks = zip(plan.shards[shard], contents[shard], strict=True)
        contents[shard] = [None if i in ids else mark for i, mark in marks]
    run.replace_plan(plan)
    crash.at("after-open-marks")
    for shard in sorted(images):
        run.withdraw(shard)
        crash.at("mid-reopen")
