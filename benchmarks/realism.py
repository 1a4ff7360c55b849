"""Compare the metric `realism` with how people sort the same pictures by eye.

python -m dhr_batch.benchmarks.realism LABELS.tsv FOLDER [--json FILE]

LABELS.tsv has tabs between columns, and a header: `picture`, `photograph`, and a column for each
viewer, 1 for a face that could be a photograph and 0 for one that shows a fault. Pictures are files
in FOLDER, and so are the photographs that they were made from; both are aligned and of one size.

The area under the ROC curve (AUC) is the share of pairs of a good and a bad picture in which the
good one has the higher value: 1 if the metric sorts as the viewer does, 0.5 if it knows nothing.
Intervals are bootstrapped over photographs. `same photograph` counts only pairs of pictures of the
same photograph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.benchmarks.machine import describe, json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import Refused

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68

COLUMNS = ("picture", "photograph")
RESAMPLED = 1000


def labels(file: Path) -> pd.DataFrame:
    """Read the labels.

    Raises:
        Refused: A column or the labels of a picture are missing.
    """
    import pandas as pd

    table = pd.read_csv(file, sep="\t")
    viewers = [name for name in table.columns if name not in COLUMNS]
    if not viewers or not set(COLUMNS) <= set(table.columns):
        raise Refused(
            str(file),
            f"its columns are {', '.join(map(str, table.columns))}",
            f"write the columns {', '.join(COLUMNS)} and one for each viewer",
        )
    if not table[viewers].isin((0, 1)).all().all():
        raise Refused(str(file), "a label is neither 0 nor 1", "label each picture")
    return table


def values(table: pd.DataFrame, folder: Path, landmarks: Landmarks68) -> np.ndarray:
    """Return the realism of each picture, measured as in a run."""
    import numpy as np
    from PIL import Image

    from dhr_batch.stages.measure.metrics import shrink
    from dhr_batch.stages.measure.realism import realism
    from dhr_batch.stages.record import required

    found = np.empty(len(table))
    for photograph, rows in table.groupby("photograph"):
        names = [str(photograph), *rows["picture"]]
        pictures = [shrink(np.asarray(Image.open(folder / n).convert("RGB")), 256) for n in names]
        box = landmarks.locate(pictures[0])[0]
        points = [required(landmarks.find(picture, box)) for picture in pictures]
        found[rows.index] = realism(np.stack(pictures), np.stack(points), "cpu")
    return found


def auc(good: np.ndarray, value: np.ndarray, same: np.ndarray | None = None) -> float:
    """Return the share of pairs in which the good picture has the higher value; NaN without pairs.

    Args:
        good: bool [N].
        value: [N].
        same: Labels [N]; only pairs with equal ones count. None for all pairs.

    Example:
        >>> import numpy as np
        >>> auc(np.array([True, True, False]), np.array([3.0, 1.0, 2.0]))
        0.5
    """
    import numpy as np

    higher = np.sign(value[good][:, None] - value[~good]) / 2 + 0.5
    if same is not None:
        higher = higher[same[good][:, None] == same[~good]]
    return float(higher.mean()) if higher.size else float("nan")


def interval(photographs: np.ndarray, value: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a value of rows, resampled by photograph."""
    import numpy as np

    draw = np.random.default_rng(0)
    groups = [np.flatnonzero(photographs == name) for name in np.unique(photographs)]
    found = []
    for _ in range(RESAMPLED):
        chosen = draw.integers(len(groups), size=len(groups))
        found.append(value(np.concatenate([groups[i] for i in chosen])))
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def validate(table: pd.DataFrame, value: np.ndarray) -> dict[str, Any]:
    """Return how well values agree with each viewer, and the viewers with each other."""
    import numpy as np

    photographs = table["photograph"].to_numpy()
    viewers = [str(name) for name in table.columns if name not in COLUMNS]
    rows = []
    for viewer in viewers:
        good = table[viewer].to_numpy() == 1

        def chosen(images: np.ndarray, good: np.ndarray = good) -> float:
            return auc(good[images], value[images])

        rows.append(
            {
                "viewer": viewer,
                "good": int(good.sum()),
                "auc": auc(good, value),
                "interval": interval(photographs, chosen),
                "same_photograph": auc(good, value, photographs),
                "mean_good": float(value[good].mean()),
                "mean_bad": float(value[~good].mean()),
            }
        )
    found: dict[str, Any] = {
        "pictures": len(table),
        "photographs": len(np.unique(photographs)),
        "viewers": rows,
    }
    if len(viewers) == 2:
        one, other = (table[viewer].to_numpy() for viewer in viewers)
        same, chance = (one == other).mean(), np.mean([one.mean(), other.mean()])
        # Scott's pi: both viewers have the same share of good pictures by chance.
        chance = chance**2 + (1 - chance) ** 2
        found |= {"agreement": float(same), "beyond_chance": float((same - chance) / (1 - chance))}
    return found


def text(found: dict[str, Any]) -> str:
    """Return the lines to print."""
    lines = [f"{found['pictures']} pictures of {found['photographs']} photographs"]
    lines += [
        f"{row['viewer']}: {row['good']} good, AUC {row['auc']:.3f} [{row['interval'][0]:.3f}, "
        f"{row['interval'][1]:.3f}], same photograph {row['same_photograph']:.3f}; "
        f"realism of good {row['mean_good']:.3f}, of bad {row['mean_bad']:.3f}"
        for row in found["viewers"]
    ]
    if "agreement" in found:
        lines.append(
            f"viewers agree on {found['agreement']:.0%} (Scott's pi {found['beyond_chance']:.2f})"
        )
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.argument("file_of_labels", metavar="LABELS", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def main(file_of_labels: Path, folder: Path, file: Path | None) -> None:
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68

    table = labels(file_of_labels)
    found = validate(
        table, values(table, folder, Landmarks68(str(catalogue.path("dlib-landmarks68"))))
    )
    click.echo(text(found))
    write_json(found | {"machine": describe()}, file)


if __name__ == "__main__":
    main()
