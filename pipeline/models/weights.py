"""Checksums of the weights that a run uses, and the check that they have not changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.spec import LocalFile
from dhr_batch.stages import registry


def weights_of(generator: str, others: Iterable[str] = ()) -> dict[str, str]:
    """Return the checksums of all weights that a run may use, by the names of the models.

    A checksum is the first 16 digits of the sha256 of each file, joined by `+`.

    Args:
        generator: The generator of the run: a model's name or a file.
        others: Names of models that the run loads. Files that users provide are read only if they
            are among these.
    """
    checksums = {
        name: "+".join(member.sha256[:16] for _, member in sorted(model.files().items()))
        for name, model in sorted(catalogue.models().items())
    }
    for name in (generator, *others):
        checksums |= own_weights(name)
    return {name: checksum for name, checksum in checksums.items() if checksum}


def weights_of_generator(generator: str) -> dict[str, str]:
    """Return the checksums of the files that a generator is loaded from, by model, as in a plan.

    Files are hashed instead of tensors, because the mean latent is computed when a generator is
    loaded, and its last bits depend on the processor.
    """
    used = {registry.label(generator), *registry.MODELS.get(("generator", generator), ())}
    return {name: checksum for name, checksum in weights_of(generator).items() if name in used}


def own_weights(name: str) -> dict[str, str]:
    """Return the checksum of a file that the user provides, by the name of its model.

    The description of such a file may lack a sha256, so the file itself is read. The result is
    empty for all other models, and for a file that is missing.

    Args:
        name: A model, or the file of a generator.
    """
    if name.endswith(registry.GENERATOR_FILE):
        file = Path(name)
    elif isinstance(getattr(catalogue.models().get(name), "source", None), LocalFile):
        try:
            file = catalogue.path(name)
        except catalogue.ModelMissing:
            # A plan may be shown before its models are downloaded. A worker cannot start then.
            return {}
    else:
        return {}
    about = file.stat()
    return {registry.label(name): _checksum(file, about.st_size, about.st_mtime_ns)}


@cache
def _checksum(file: Path, _size: int, _mtime_ns: int) -> str:
    """Return the start of a sha256. Files of a gigabyte are not read again for each question."""
    return sha256(file)[:16]


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
    others = set(others)
    now = weights_of(generator, others)
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
