"""Training pairs of the StyleGAN2 test bed: codes of its teacher and reduced images, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.fitting.distill_pairs import codes, write_atomically
from dhr_batch.stages.networks.generators.mobilestylegan import STYLEGAN2_ROWS, MobileStyleGAN

# Side of the cached images; smaller ones are made of them.
SIZE = 128
SHARD = 64
# Rows of the teacher's codes that affect its image.
ROWS = 16


def student_rows(ws: Tensor, num_ws: int) -> Tensor:
    """Return the rows of StyleGAN2 of codes of MobileStyleGAN, [B, 16.., 512] -> [B, L, 512].

    The last row of 128 px modulates only an image layer, as the row of the teacher's head does.
    """
    return ws[:, [min(STYLEGAN2_ROWS[row], ROWS - 1) for row in range(num_ws)]]


@torch.no_grad()
def render(teacher: MobileStyleGAN, ws: Tensor) -> Tensor:
    """Return the images of codes, reduced to 128 px by area, uint8 [B, 3, 128, 128]."""
    # The error of half precision is 1/500 of the range. One image at a time is the fastest.
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.cat([teacher.synthesize(code[None]).float() for code in ws])
    small = F.avg_pool2d(images, teacher.resolution // SIZE)
    return ((small.clamp(-1, 1) + 1) * 127.5).round().byte()


def levels(images: Tensor, size: int) -> Tensor:
    """Return uint8 images [B, 3, R, R] in [-1, 1], reduced to `size` by area."""
    return F.avg_pool2d(images.float() / 127.5 - 1, images.shape[-1] // size)


class Pairs:
    """Pairs in memory that grow by shards of 64, which are cached.

    Args:
        teacher: The teacher.
        cache: Folder of the cached shards.
        num_ws: Rows of the student's codes.

    Attributes:
        ws: Codes, [N, num_ws, 512].
        images: uint8 [N, 3, 128, 128].
    """

    def __init__(self, teacher: MobileStyleGAN, cache: Path, num_ws: int) -> None:
        self.teacher, self.cache, self.num_ws = teacher, cache / f"pairs-{SIZE}", num_ws
        self.ws = torch.zeros(0, num_ws, 512)
        self.images = torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8)
        self.cache.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.ws)

    def _file(self, index: int) -> Path:
        return self.cache / f"{index:05d}.npz"

    def load(self) -> None:
        """Add all shards that are cached already."""
        while self._file(len(self) // SHARD).exists():
            self.add()

    def add(self) -> None:
        """Add the next shard, rendered unless it is cached."""
        index = len(self) // SHARD
        file = self._file(index)
        if not file.exists():
            seeds = range(index * SHARD, (index + 1) * SHARD)
            with torch.no_grad():
                ws = torch.cat([codes(self.teacher, seed)[:, :ROWS] for seed in seeds])
                images = render(self.teacher, F.pad(ws, (0, 0, 0, self.teacher.num_ws - ROWS)))

            def save(path: Path) -> None:
                with path.open("wb") as stream:
                    np.savez(stream, ws=ws.half().numpy(), images=images.numpy())

            write_atomically(file, save)
        with np.load(file) as data:
            ws, images = (torch.from_numpy(data[name]) for name in ("ws", "images"))
        self.ws = torch.cat([self.ws, student_rows(ws.float(), self.num_ws)])
        self.images = torch.cat([self.images, images])
