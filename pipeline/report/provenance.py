"""The sections of a report on settings, versions and models, and on rights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dhr_batch.pipeline.datasets.items import left_out
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.report.data import RunData
from dhr_batch.pipeline.report.page import Column, Section, Table

_MAX_HOSTS = 10


def settings(data: RunData) -> Section | None:
    """Return the section on settings, versions and models, or None if nothing is known of them."""
    plan, config = data.plan, data.plan.settings.values
    fingerprint = plan.fingerprint
    facts: dict[str, Any] = {"dhr-batch": fingerprint.version}
    facts |= {"code of the stages": fingerprint.code, **plan.versions}
    facts |= {"dataset": plan.dataset, "seed": plan.settings.seed}
    facts["left out of the dataset"] = left_out(plan.ignored or {})
    if fingerprint.origin is not None:
        facts["begins at"] = f"{plan.settings.first_stage}; the dataset is the run it begins from"
    hosts = sorted({shard.worker.host for shard in data.shards.values() if shard.worker})
    facts["workers ran on"] = ", ".join(hosts[:_MAX_HOSTS])
    rows = [[name, str(value)] for name, value in facts.items() if value not in (None, "")]
    tables = [Table("Made with", [Column("what"), Column("version or value", code=True)], rows)]
    if data.models:
        tables.append(models_table(data.models, fingerprint.models))
    if not (config or rows or data.models):
        return None
    text, code = [], None
    if config:
        text.append(
            "To repeat this run, save the settings below as settings.yaml and use: "
            "dhr-batch run -c settings.yaml --out DIR. All settings are listed, defaults included."
        )
        code = ("Settings, as YAML", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return Section("settings", "Settings and provenance", text, tables=tables, code=code)


def models_table(names: Sequence[str], digests: Mapping[str, str]) -> Table:
    """Return a table of models.

    Args:
        names: Names of the models.
        digests: Their checksums when the run was planned.
    """
    heads = ["model", "role", "start of sha256", "source", "commercial use", "licence"]
    return Table(
        "Models used",
        [Column(head, code=head in ("model", "start of sha256", "source")) for head in heads],
        list(_model_rows(names, digests)),
    )


def _model_rows(names: Sequence[str], digests: Mapping[str, str]) -> Iterator[list[Any]]:
    known = catalogue.models()
    for name in names:
        digest = digests.get(name, "not recorded").replace("+", " ")
        if name in known:
            m = known[name]
            yield [name, m.role, digest, m.origin, m.commercial_use, m.licence]
        else:
            yield [name, "", digest, "not in this version's registry", "", ""]


def rights() -> Section:
    """Return the section on rights and personal data."""
    return Section(
        "rights",
        "Rights and personal data",
        (
            "Photographs of faces, and everything computed from them (latent codes, masks, "
            "identity distances, edited pictures), are personal data. The consent of the people "
            "shown and the licence of the dataset apply to every use of this page.",
            "Output of a generator with non-commercial weights is for non-commercial use. The "
            "embedded generators descend from StyleGAN2 weights trained on FFHQ and are such "
            "weights; dlib's landmark model excludes commercial use as well. The file NOTICE of "
            "dhr-batch names the licence of every model.",
            "Every edited picture carries “edited by dhr-batch” in its metadata. Keep that mark "
            "when you pass pictures on.",
        ),
    )
