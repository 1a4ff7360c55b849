"""The deletion of all files of a run, for `--fresh`."""

from __future__ import annotations

import re
from contextlib import suppress

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import PLAN, is_record
from dhr_batch.pipeline.runs.own_parts import is_staged, parts_among
from dhr_batch.pipeline.runs.records import status_file
from dhr_batch.pipeline.runs.records.status_file import STATUS
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.pipeline.tables.schemas import TABLES

# Files that remain: the lease, which is held, and the logs, which users read.
_KEPT = re.compile(r"_state/(lease|clock|owner\.json|logs/worker-.*\.log)")


def delete(run: RunFolder) -> list[str]:
    """Delete the files of a run, except the logs and the lease, which the caller must hold.

    The manifests are deleted after the parts that they name, and the plan last. If the process is
    killed in between, the folder is a run whose shards are to be computed.

    Returns:
        The remaining files, which do not belong to the run.

    Raises:
        Refused: If the next run would overwrite one of these files. Nothing is deleted then.
    """
    storage = run.storage
    owned = Owned(storage, RUN)
    sizes = storage.sizes()
    named: dict[str, int] = {}
    plan = run.plan()
    if plan is not None and {"schema", "shards"} & set(plan.missing):
        place = storage.locate(PLAN)
        raise Refused(place, "it is not the plan of a run, but another file", "move it away")
    for shard, manifest in run.each_manifest():
        named |= run.own.sizes(shard, manifest)
    parts = parts_among(sizes)
    run.own.require(parts, named)
    foreign = owned.foreign(owned.files)
    rest = [key for key in owned.files if key not in foreign]
    with suppress(status_file.Damaged):
        status_file.read_status(storage)
        rest.append(STATUS)
    groups = [[key for key in parts if key.startswith(f"{table}/")] for table in TABLES]
    groups += [list(filter(kind, sizes)) for kind in (is_staged, is_record)]
    groups += [rest, [PLAN]]
    for keys in groups:
        run.check()
        storage.remove(keys)
    owned.forget(rest)
    if owned.found_kind:
        owned.claim(unlisted=False)
    left = set(sizes).difference(*groups)
    return sorted(key for key in left if not _KEPT.fullmatch(key))
