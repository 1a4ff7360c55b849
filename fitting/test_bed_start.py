"""The start of the StyleGAN2 test bed: each layer by ridge regression on its teacher's features."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from scipy.linalg import qr
from torch import Tensor

from dhr_batch.fitting.test_bed_pairs import levels, student_rows
from dhr_batch.fitting.test_bed_student import Coordinates, conv, rgb, style
from dhr_batch.stages.networks.generator import Place, Tap
from dhr_batch.stages.networks.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.stylegan2 import StyleGAN2

RIDGE = 1e-2
# Codes that choose channels.
CHOOSING = 64
# Rows of a regression for each of its unknowns.
ROWS = 40
CHUNK = 16
# Of the activation below 0.
SLOPE = 0.2


class Start:
    """Weights of the student's synthesis network that follow its teacher layer by layer.

    A layer of the student has a part of the channels of the teacher's layer, those from which the
    other ones can be predicted best. Its styles are the teacher's styles of these channels. Its
    kernel predicts the teacher's features before the activation, from the student's own features,
    so that later layers make up for errors of earlier ones. The teacher has no demodulation, so
    the features of the student are those of the teacher times a factor of each channel. Styles are
    brought to the same size, and the regression makes up for all these factors.

    Args:
        net: The student.
        teacher: The teacher.
        space: Coordinates of W of the modulations.
        ws: Codes of the teacher, [N, num_ws, 512].
        images: Images of the teacher, uint8 [N, 3, R, R].

    Attributes:
        params: The weights by name, with modulations of coordinates of W.
    """

    def __init__(
        self,
        net: StyleGAN2,
        teacher: MobileStyleGAN,
        space: Coordinates,
        ws: Tensor,
        images: Tensor,
    ) -> None:
        self.net, self.teacher, self.space, self.images = net, teacher, space, images
        self.ws = space.encode(student_rows(ws, net.num_ws))
        self.params: dict[str, Tensor] = {}
        self.channels, self.targets = self._targets(ws)
        self._fit()

    def _places(self) -> list[tuple[Place, str]]:
        """Return the teacher's place and the layer of its next styles for each convolution."""
        places: list[tuple[Place, str]] = [((4, "out"), "layers.0.up")]
        for block in range(int(math.log2(self.net.resolution)) - 2):
            after = f"layers.{block + 1}.up" if block + 1 < self.teacher.blocks else "to_img"
            places.append(((8 * 2**block, "up"), f"layers.{block}.conv2"))
            places.append(((8 * 2**block, "out"), after))
        return places

    def _features(self, ws: Tensor) -> list[Tensor]:
        """Return the teacher's features before the activation, [B, C, s, s] for each place."""
        found: dict[Place, Tensor] = {}

        def keep(place: Place) -> Tap:
            def tap(x: Tensor) -> Tensor:
                found[place] = torch.where(x < 0, x / SLOPE, x)
                return x

            return tap

        places = [place for place, _ in self._places()]
        self.teacher.synthesize(ws, taps={place: keep(place) for place in places})
        return [found[place] for place in places]

    def _targets(self, ws: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each place the channels, and their features in bfloat16, [N, C, s, s]."""
        first = [self._features(part) for part in ws[:CHOOSING].split(CHUNK)]
        sizes = [self.net.channels[int(math.log2(place[0])) - 2] for place, _ in self._places()]
        chosen = []
        for maps, count in zip(zip(*first, strict=True), sizes, strict=True):
            x = torch.cat(maps)
            x = F.avg_pool2d(x, max(1, x.shape[-1] // 16)).transpose(0, 1).flatten(1)
            chosen.append(torch.from_numpy(qr(x.T.numpy(), mode="r", pivoting=True)[1][:count]))
        parts = [
            [x[:, keep].bfloat16() for x, keep in zip(self._features(part), chosen, strict=True)]
            for part in ws.split(CHUNK)
        ]
        return chosen, [torch.cat(maps) for maps in zip(*parts, strict=True)]

    def _fit(self) -> None:
        """Find the weights of all layers in the order of synthesis."""
        constant = self.teacher.weight("input").detach()
        _, _, order = qr(constant.flatten(1).T.numpy(), mode="economic", pivoting=True)
        channels = torch.from_numpy(order[: self.net.channels[0]])
        self.params["input"] = constant[channels]
        x = constant[channels].expand(len(self.ws), -1, -1, -1)
        source, image = "conv1", None
        for row, (place, after) in enumerate(self._places()):
            name = "conv1" if row == 0 else f"convs.{row - 1}"
            up = row % 2 == 1
            self._set_style(name, source, channels, row)
            kernel, bias = self._kernel(name, x, self.targets[row], row, up)
            channels = self.channels[row]
            self._set_conv(name, kernel, bias, row)
            w = self.ws[:, row]
            x = torch.cat(
                [
                    conv(self.net, self.params, name, part, code, up)
                    for part, code in zip(x.split(CHUNK), w.split(CHUNK), strict=True)
                ]
            )
            self.targets[row] = torch.empty(0)  # Needed no more, and large.
            source = after
            if not up:
                head = "to_rgb1" if row == 0 else f"to_rgbs.{row // 2 - 1}"
                self._set_style(head, after, channels, row + 1)
                image = self._head(head, x, row, place[0], image)

    def _set_style(self, name: str, source: str, channels: Tensor, row: int) -> None:
        """Give a layer the styles of the teacher's layer `source`, each with a mean square of 1."""
        weight = self.teacher.weight(f"{source}.modulation.weight")[channels]
        bias = self.teacher.weight(f"{source}.modulation.bias")[channels]
        weight, bias = self.space.from_weights(weight * math.sqrt(weight.shape[1]), bias)
        size = F.linear(self.ws[:, row], weight, bias).square().mean(0).sqrt()
        self.params[f"{name}.modulation.weight"] = weight / size[:, None]
        self.params[f"{name}.modulation.bias"] = bias / size

    def _kernel(
        self, name: str, x: Tensor, target: Tensor, row: int, up: bool
    ) -> tuple[Tensor, Tensor]:
        """Return kernel [out, in, 3, 3] and bias that predict the target without demodulation."""
        size, unknowns = target.shape[-1], 9 * x.shape[1]
        count = min(size * size, math.ceil(ROWS * unknowns / len(x)))
        draw = torch.Generator().manual_seed(row)

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for start in range(0, len(x), CHUNK):
                part = slice(start, start + CHUNK)
                scaled = x[part] * style(self.params, name, self.ws[part, row])[:, :, None, None]
                if up:
                    # A transposed convolution is one of values that zeros are put between.
                    zeros = torch.zeros(*scaled.shape[:2], size + 5, size + 5)
                    zeros[:, :, 3 : size + 3 : 2, 3 : size + 3 : 2] = scaled
                    taps = self.net.filter.expand(zeros.shape[1], 1, 4, 4)
                    scaled = F.conv2d(zeros, taps, groups=zeros.shape[1])
                places = torch.randperm(size * size, generator=draw)[:count]
                columns = F.unfold(scaled, 3, padding=0 if up else 1)[:, :, places]
                wanted = target[part].float().flatten(2)[:, :, places]
                yield columns.transpose(1, 2).flatten(0, 1), wanted.transpose(1, 2).flatten(0, 1)

        weight, bias = ridge(batches())
        kernel = weight.reshape(len(weight), -1, 3, 3)
        return (kernel.flip(2, 3) if up else kernel), bias

    def _set_conv(self, name: str, kernel: Tensor, bias: Tensor, row: int) -> None:
        """Store a kernel at unit variance, and the bias in units of the demodulated features."""
        scales = style(self.params, name, self.ws[:, row])
        norm = torch.rsqrt(scales.square() @ kernel.square().sum((2, 3)).T + 1e-8)
        size = kernel.square().mean((1, 2, 3), keepdim=True).sqrt()
        self.params[f"{name}.weight"] = kernel / size
        self.params[f"{name}.bias"] = bias * norm.mean(0)
        self.params[f"{name}.noise_strength"] = torch.zeros(1)

    def _head(self, name: str, x: Tensor, row: int, size: int, below: Tensor | None) -> Tensor:
        """Find an image layer and return its images, [N, 3, s, s]."""
        target = levels(self.images, size)
        if below is not None:
            taps = self.net.filter.expand(3, 1, 4, 4)
            below = F.conv_transpose2d(below, taps, stride=2, padding=1, groups=3)
            target = target - below
        scales = style(self.params, name, self.ws[:, row + 1]) / math.sqrt(x.shape[1])
        count = min(size * size, math.ceil(100 * ROWS * x.shape[1] / len(x)))
        draw = torch.Generator().manual_seed(row)

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for start in range(0, len(x), CHUNK):
                part = slice(start, start + CHUNK)
                places = torch.randperm(size * size, generator=draw)[:count]
                columns = (x[part] * scales[part, :, None, None]).flatten(2)[:, :, places]
                wanted = target[part].flatten(2)[:, :, places]
                yield columns.transpose(1, 2).flatten(0, 1), wanted.transpose(1, 2).flatten(0, 1)

        self.params[f"{name}.weight"], self.params[f"{name}.bias"] = ridge(batches())
        made = rgb(self.params, name, x, self.ws[:, row + 1])
        return made if below is None else made + below


def ridge(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return weights [targets, inputs] and offsets of a ridge regression with an intercept.

    Args:
        batches: Pairs of inputs [N, inputs] and targets [N, targets].
    """
    gram, cross = torch.zeros(()), torch.zeros(())
    for x, target in batches:
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        gram, cross = gram + x.T @ x, cross + x.T @ target
    penalty = torch.full((len(gram),), RIDGE * float(gram.diagonal()[:-1].mean()))
    penalty[-1] = 0
    solved = torch.linalg.solve((gram + penalty.diag()).double(), cross.double()).float()
    return solved[:-1].T.contiguous(), solved[-1]
