"""Checksums of the weights that a run uses, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue as models
from dhr_batch.pipeline.models.spec import LocalFile
from dhr_batch.stages import registry


def weights_of(generator: str) -> dict[str, str]:
    """Start of the sha256 of all weights that a run with this generator may use, by name."""
    sums = {
        name: "+".join(member.sha256[:16] for _, member in sorted(model.files().items()))
        for name, model in sorted(models.models().items())
    }
    sums |= own_weights(generator)
    return {name: checksum for name, checksum in sums.items() if checksum}


def own_weights(generator: str) -> dict[str, str]:
    """Start of the sha256 of a generator's file that the user brought, by the generator's name.

    Its description cannot tell one version of the file from another. Empty for all others.
    """
    if generator.endswith(registry.GENERATOR_FILE):
        file = Path(generator)
    elif isinstance(getattr(models.models().get(generator), "source", None), LocalFile):
        try:
            file = models.path(generator)
        except models.ModelMissing:
            # A plan may be looked at before its models are here; a worker will not start.
            return {}
    else:
        return {}
    return {registry.label(generator): models.sha256_of(file)[:16]}


def check_weights(plan: Mapping[str, Any], place: str) -> None:
    """Raises Refused where a run was made with other weights of its generator than there are now.

    plan: of the run; place: for people.
    """
    generator = plan["config"]["generator"]
    then, now = plan["fingerprint"]["models"], weights_of(generator)
    names = {registry.label(generator), *registry.MODELS.get(("generator", generator), ())}
    for name in sorted(names & then.keys() & now.keys()):
        if then[name] != now[name]:
            raise Refused(
                f"{place} was made with other weights of {name} ({then[name]}, here "
                f"{now[name]}): its codes and refinements fit those only"
            )
