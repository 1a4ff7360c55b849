"""Checksums of the weights that a run uses, and the check that they have not changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.spec import LocalFile
from dhr_batch.stages import registry


def weights_of(generator: str) -> dict[str, str]:
    """Return the checksums of all weights that a run may use, by the names of the models.

    A checksum is the first 16 digits of the sha256 of each file, joined by `+`.

    Args:
        generator: The generator of the run: a model's name or a file.
    """
    checksums = {
        name: "+".join(member.sha256[:16] for _, member in sorted(model.files().items()))
        for name, model in sorted(catalogue.models().items())
    }
    checksums |= own_weights(generator)
    return {name: checksum for name, checksum in checksums.items() if checksum}


def own_weights(generator: str) -> dict[str, str]:
    """Return the checksum of a generator's file that the user provides, by the generator's name.

    The description of such a file may lack a sha256, so the file itself is read. The result is
    empty for all other generators, and for a file that is missing.
    """
    if generator.endswith(registry.GENERATOR_FILE):
        file = Path(generator)
    elif isinstance(getattr(catalogue.models().get(generator), "source", None), LocalFile):
        try:
            file = catalogue.path(generator)
        except catalogue.ModelMissing:
            # A plan may be shown before its models are downloaded. A worker cannot start then.
            return {}
    else:
        return {}
    return {registry.label(generator): sha256(file)[:16]}


def check_weights(
    generator: str, then: Mapping[str, str], place: str, others: Iterable[str] = ()
) -> None:
    """Check that the models that render a run still have the weights that it was made with.

    Args:
        generator: The generator of the run.
        then: The weights it was made with, as `weights_of` gives them.
        place: The folder or URL of the run, for the message.
        others: Models that rendering needs besides the generator.

    Raises:
        Refused: If the weights have changed.
    """
    now = weights_of(generator)
    own = registry.MODELS.get(("generator", generator), ())
    names = {registry.label(generator), *own, *others}
    for name in sorted(names & then.keys() & now.keys()):
        if then[name] != now[name]:
            raise Refused(
                place,
                f"it was made with other weights of {name} ({then[name]}, here {now[name]}): its "
                "codes and refinements only fit those",
                "restore those weights",
            )
