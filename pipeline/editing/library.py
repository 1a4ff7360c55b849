"""The commands `edit` and `run` as functions."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from dhr_batch.pipeline.editing.chain import Chain, configured, planned
from dhr_batch.pipeline.editing.choice import Choice, Edits
from dhr_batch.pipeline.editing.edited import Edited
from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning.prepare import check_models, prepare
from dhr_batch.pipeline.planning.request import Mode, Request
from dhr_batch.pipeline.runs import results
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages.context import Told
from dhr_batch.stages.device import Kind
from dhr_batch.stages.networks.files.regular import opened
from dhr_batch.stages.record import ImageFailure, Record

# The modes of PIL images that a PNG file holds.
_AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class NotEdited(CommandError):
    """A photograph could not be edited, for example because it shows no face.

    Attributes:
        failure: The stage that failed, the class of the failure and an explanation.
    """

    def __init__(self, failure: ImageFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def edit(
    image: str | Path | Image.Image | np.ndarray,
    edits: Edits = (),
    *,
    sweep: str | Iterable[str] = (),
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: Kind | None = None,
    face: Literal["largest", "central", "only", "all"] | int | None = None,
    aligned: bool = False,
    progress: Told = lambda stage, step, steps: None,
) -> Edited:
    """Edit the face in a photograph.

    The stages of a run are run in this process. On two CPU cores this takes less than a minute. The
    networks stay loaded for other photographs and edits, until a call has other settings or
    `dhr_batch.unload` is called.

    These settings hold for the whole process afterwards: the number of threads of torch and OpenCV
    (the setting `threads`, by default all cores), on NVIDIA GPUs whether torch multiplies with TF32
    (the setting `precision`), and on a CPU with glibc that freed memory is kept for reuse. If other
    programs use the cores, give fewer threads, as in `settings={"threads": 2}`, and set the
    environment variable `OMP_WAIT_POLICY` to `PASSIVE` before torch is imported, as the command
    does: otherwise threads that wait take the cores from each other.

    Args:
        image: A file, a PIL image, or the pixels, uint8 [H, W] (grey), [H, W, 3] (RGB) or
            [H, W, 4] (RGBA).
        edits: The strength of each direction, which gives a picture of its own, as in
            `{"smile": 2}`. Or texts such as `smile=2` or `smile=1+age=10`, one for each picture. By
            default the edits of the settings.
        sweep: Further edits, which `save` writes as a strip and an animation: `smile=-2:2:9`.
        preset: Named settings.
        settings: Further settings, as in a YAML file: `{"embed": {"steps": 50}}`.
        device: The device; by default `cuda` if there is one, else `cpu`.
        face: Which of several faces: the largest (the default), the one in the centre, all of them,
            or one by its number, where 0 is the largest.
        aligned: Whether the image is an FFHQ crop. Then no face is searched for.
        progress: Called with the name of the stage, the number of its finished steps and the number
            of all its steps; both are 0 when it begins.

    Raises:
        NotEdited: The photograph cannot be used. The message gives the reason.
        Refused: An edit, a setting or the array is invalid.
        ModelMissing: Networks are missing. The message gives the command that downloads them.
        OSError: The file cannot be read.

    Example:
        ```python
        edited = dhr_batch.edit("photo.jpg", {"smile": 2})
        edited.pictures["smile=2"].save("smile.png")
        ```
    """
    record, choice = _record(image), Choice.of(edits, sweep)
    given = {"preset": preset, "device": device}
    own = {key: value for key, value in given.items() if value is not None}
    faces = {} if face is None else {"align": {"face": face}}
    layers = configs.merge([_mapping(settings), own, faces, choice.settings()])
    request = Request(settings=layers)
    plan = planned(request, configured(request), (), aligned)
    check_models(plan, request)
    chain = Chain(plan, choice, progress)
    result = chain.edit_record(record)
    if isinstance(result, ImageFailure):
        raise NotEdited(result)
    return result


def _mapping(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check the type of settings.

    Raises:
        Refused: They are not a mapping.
    """
    if settings is not None and not isinstance(settings, Mapping):
        why = f"they must be a mapping, but are of type {type(settings).__name__}"
        raise Refused("settings", why, 'give for instance {"embed": {"steps": 50}}')
    return dict(settings or {})


def _record(image: str | Path | Image.Image | np.ndarray) -> Record:
    if isinstance(image, (str, Path)):
        path = Path(image).expanduser()
        with opened(path) as file:
            return Record(path.name, str(path), data=file.read())
    channels = ((), (3,), (4,))
    if isinstance(image, np.ndarray) and not (
        image.dtype == np.uint8 and image.ndim > 1 and image.size and image.shape[2:] in channels
    ):
        raise Refused(
            f"an array of {image.dtype} and shape {list(image.shape)}",
            "it is not a picture of type uint8 and shape [H, W], [H, W, 3] or [H, W, 4]",
            "convert it, for instance (255 * x).round().astype(numpy.uint8) for values from 0 to 1",
        )
    if not isinstance(image, (Image.Image, np.ndarray)):
        raise Refused(
            f"an image of type {type(image).__name__}",
            "it is neither a file, nor a PIL image, nor an array",
            "give one of these; call the function once for each photograph",
        )
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = ImageOps.exif_transpose(picture)
    kind, options = "PNG", {"compress_level": 1}
    if picture.mode in ("CMYK", "LAB"):
        kind, options = "TIFF", {}
    elif picture.mode not in _AS_PNG:
        picture = picture.convert("RGB")
    stream = io.BytesIO()
    # Stages read everything from the content of a file, also the colour profile.
    picture.save(stream, kind, **options)
    return Record("image", "image", data=stream.getvalue())


def run(
    dataset: str | Path,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    files: Sequence[str | Path] = (),
    limit: int | None = None,
    gpus: int | None = None,
    device: Kind | None = None,
    address: str | None = None,
    fresh: bool = False,
    extend: bool = False,
    report: bool = True,
    progress: Mode = "auto",
) -> Run:
    """Run all stages on a dataset, or finish an interrupted run, as the command `run` does.

    Args:
        dataset: A name, a folder, a .tar or .parquet file, or a URL.
        out: The folder of the run, or its URL in an object store; by default
            `runs/<dataset>-<generator>`.
        preset: Named settings.
        settings: Further settings, as in a YAML file: `{"refine": {"steps": 50}}`.
        files: YAML files with settings.
        limit: The number of images to process, from the first; by default all.
        gpus: The number of GPUs to use; 0 for the CPU; by default all.
        device: The kind of device; by default `cuda` if there is one.
        address: The Ray cluster to join; by default a local session.
        fresh: Whether to delete the run and start over.
        extend: Whether to add images that are new in the dataset to the run.
        report: Whether to write the report.
        progress: How to display the progress.

    Returns:
        The run. Images that could not be used are in its table `quarantine`.

    Raises:
        CommandError: The run cannot be started or finished. The message gives the reason and the
            remedy.
        KeyboardInterrupt: The user asked to stop. The same call continues the run.
    """
    from dhr_batch.pipeline.engine import runner

    given = {"preset": preset, "limit": limit, "gpus": gpus, "device": device}
    own = {key: value for key, value in given.items() if value is not None}
    request = Request(
        settings=configs.merge([_mapping(settings), own, {"dataset": str(dataset)}]),
        files=[Path(file).expanduser() for file in files],
        out=out,
        address=address,
        fresh=fresh,
        confirmed=fresh,
        extend=extend,
        report=report,
        progress=progress,
    )
    outcome = runner.run(prepare(request), request)
    if outcome.exit_code == runner.INTERRUPTED:
        raise KeyboardInterrupt
    return results.open(outcome.out)
