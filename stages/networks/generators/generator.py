"""The interface of generators: named weights, W and W+ codes, and taps on the features inside."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Offsets of weights, [B, *shape] by name. `LAYER.style`, [B, C], is an offset of the styles of a
# layer: the factors of its input channels, which the modulation computes from a row of the code.
Delta = Mapping[str, Tensor]
# Where the features of the block of a size in pixels can be changed: "up" is after its first
# convolution, which enlarges the features, and "out" after its second. Both include noise and
# activation. The image layers of StyleGAN2, one per block, read the features before a change at
# "out"; the only one of MobileStyleGAN reads them after it.
Place = tuple[int, str]
# Functions that change features [B, C, h, w] inside a synthesis.
Taps = Mapping[Place, Callable[[Tensor], Tensor]]

STYLE_WIDTH = 512


def replace_feature(feature: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the tap of DHR, ``x -> mask x + (1 - mask) feature``.

    Args:
        feature: [B, C, h, w].
        mask: [B, 1, h, w] in 0..1, where 1 is in-domain.
    """
    return lambda x: torch.lerp(feature, x.to(feature), mask)


class Generator(nn.Module, ABC):
    """A style-based generator, differentiable in the latent, the weights and the feature layer.

    Weights whose names start with ``mapping.`` belong to the mapping network, all others to the
    synthesis network. Noise is constant, so a render is a function of its arguments.

    Attributes:
        resolution: Side of the image in pixels.
        num_ws: Number of rows of a W+ code.
        channels: Widths of the features at 4, 8, 16, ... px.
        w_mean: Mean latent, [512].
        noise_names: Layers that have a noise map.
        code_norm: Divisor of codes before modulations.
    """

    resolution: int
    num_ws: int
    channels: tuple[int, ...]
    code_norm = 1.0

    def __init__(self, mapping_layers: int = 8) -> None:
        super().__init__()
        self.weights = nn.ParameterDict()
        self.noise_names: list[str] = []
        self.mapping_layers = mapping_layers
        for i in range(mapping_layers):
            self._add(f"mapping.{i}.weight", STYLE_WIDTH, STYLE_WIDTH)
            self._add(f"mapping.{i}.bias", STYLE_WIDTH)
        self.register_buffer("w_mean", torch.zeros(STYLE_WIDTH))
        self.w_mean: Tensor
        self.w_mean_computed = False

    # ---------------------------------------------------------------------- parameters

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")

    def _add(self, name: str, *shape: int) -> None:
        self.weights[self._key(name)] = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def _add_modulation(self, name: str, width: int) -> None:
        self._add(f"{name}.modulation.weight", width, STYLE_WIDTH)
        self._add(f"{name}.modulation.bias", width)

    def _add_noise(self, name: str, size: int) -> None:
        self.register_buffer("noise_" + name.replace(".", "_"), torch.zeros(size, size))
        self.noise_names.append(name)

    def noise(self, name: str) -> Tensor:
        """Return the noise map [h, w] of a layer, one of `noise_names`."""
        return getattr(self, "noise_" + name.replace(".", "_"))

    def weight_names(self, prefix: str = "") -> list[str]:
        """Return the names of all weights that start with `prefix`, in the order of synthesis."""
        return [k.replace("/", ".") for k in self.weights if k.replace("/", ".").startswith(prefix)]

    def weight(self, name: str) -> Tensor:
        """Return the shared weight `name`, without an axis of images.

        Raises:
            KeyError: There is no such weight.
        """
        return self.weights[self._key(name)]

    def _get(self, name: str, delta: Delta | None, batch: int) -> Tensor:
        """Return a weight with an axis of images: [B, *shape], or [1, *shape] if it is shared."""
        return self._moved(self.weight(name).unsqueeze(0), name, delta, batch)

    @staticmethod
    def _moved(shared: Tensor, name: str, delta: Delta | None, batch: int) -> Tensor:
        offset = delta.get(name) if delta else None
        if offset is None:
            return shared
        if offset.shape[0] != batch:
            raise ValueError(
                f"delta {name!r} is for {offset.shape[0]} images, the codes for {batch}"
            )
        return shared + offset

    def _style(self, name: str, style: Tensor, delta: Delta | None) -> Tensor:
        b = style.shape[0]
        weight = self._get(f"{name}.modulation.weight", delta, b)
        bias = self._get(f"{name}.modulation.bias", delta, b)
        if weight.shape[0] == 1:
            styles = F.linear(style, weight[0]) + bias
        else:
            styles = torch.bmm(weight, style.unsqueeze(2)).squeeze(2) + bias
        return self._moved(styles, f"{name}.style", delta, b)

    @torch.no_grad()
    def magnitudes(self) -> dict[str, float]:
        """Return the Euclidean norm of each weight by name.

        The key `feature` has the root mean square of the feature layer at the mean latent.
        """
        norms = {name: float(self.weight(name).norm()) for name in self.weight_names()}
        feature = self.to_feature(self.broadcast(self.w_mean[None]))
        return norms | {"feature": float(feature.square().mean().sqrt())}

    # ---------------------------------------------------------------------- latents

    def styles(self, ws: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Return the styles of some layers for W+ codes [B, num_ws, 512], layer -> [B, C]."""
        return {
            name: self._style(name, ws[:, row] / self.code_norm, None)
            for row in self.live_rows
            for name in self.modulated(row)
            if name in layers
        }

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Map normal vectors z [B, 512] to latents w [B, 512].

        With a truncation t other than 1, ``w_mean + t (w - w_mean)`` is returned.
        """
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for i in range(self.mapping_layers):
            w = F.linear(w, self.weight(f"mapping.{i}.weight"), self.weight(f"mapping.{i}.bias"))
            w = F.leaky_relu(w, 0.2) * math.sqrt(2)
        return self.w_mean + truncation * (w - self.w_mean) if truncation != 1.0 else w

    def broadcast(self, w: Tensor) -> Tensor:
        """Return W+ codes [B, num_ws, 512] with equal rows from latents w [B, 512]."""
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)

    @torch.no_grad()
    def set_w_mean(self, samples: int = 4096) -> None:
        """Compute the mean latent from `samples` fixed draws (seed 0)."""
        z = torch.randn(samples, STYLE_WIDTH, generator=torch.Generator().manual_seed(0))
        self.w_mean.copy_(self.map(z.to(self.w_mean.device)).mean(0))
        self.w_mean_computed = True

    def _check(self, ws: Tensor) -> None:
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, STYLE_WIDTH):
            raise ValueError(
                f"expected W+ codes of shape [B, {self.num_ws}, {STYLE_WIDTH}], "
                f"got {list(ws.shape)}"
            )

    @abstractmethod
    def modulated(self, row: int) -> list[str]:
        """Return the layers that a row of a W+ code modulates; empty for a row without effect."""

    @property
    def live_rows(self) -> list[int]:
        """The rows of a W+ code that affect the image."""
        return [row for row in range(self.num_ws) if self.modulated(row)]

    @abstractmethod
    def in_trunk(self, layer: str) -> bool:
        """Whether a modulated layer is computed by `trunk`, and not by `from_feature`."""

    @property
    def trunk_rows(self) -> list[int]:
        """The rows of a W+ code that modulate a layer of the trunk, and perhaps others as well."""
        return [row for row in self.live_rows if any(map(self.in_trunk, self.modulated(row)))]

    @abstractmethod
    def expand_direction(self, direction: Tensor) -> Tensor:
        """Return an edit direction for every row of a code, [num_ws, 512].

        Args:
            direction: [512] for all rows alike, or as many rows as the generator can assign.

        Raises:
            ValueError: The direction has another shape. It is never cut or padded silently.
        """

    # ---------------------------------------------------------------------- synthesis

    @property
    def places(self) -> tuple[Place, ...]:
        """All places where features can be changed, in the order of synthesis."""
        sizes = [4 * 2**i for i in range(1, len(self.channels))]
        return (4, "out"), *((size, where) for size in sizes for where in ("up", "out"))

    @property
    @abstractmethod
    def feature_place(self) -> Place:
        """The place of the feature layer, at which DHR replaces features."""

    def place_shape(self, place: Place) -> tuple[int, int, int]:
        """Return the number of channels, the height and the width of the features at a place.

        Raises:
            ValueError: There is no such place.
        """
        self._check_place(place)
        size = place[0]
        return self.channels[int(math.log2(size)) - 2], size, size

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width of the feature layer."""
        return self.place_shape(self.feature_place)

    def _check_place(self, place: Place) -> None:
        if place not in self.places:
            raise ValueError(
                f"this generator has no features at {place}; choose from: "
                f"{', '.join(map(str, self.places))}"
            )

    def _tapped(self, x: Tensor, place: Place, taps: Taps | None) -> Tensor:
        """Return the features as a tap at this place changes them. The feature layer is left."""
        if not taps or place not in taps or place == self.feature_place:
            return x
        return taps[place](x)

    @abstractmethod
    def trunk(
        self, ws: Tensor, delta: Delta | None = None, taps: Taps | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the feature layer [B, C, h, w] of W+ codes [B, num_ws, 512] and the image so far.

        The image [B, 3, h', w'] is None for networks that do not sum images. Both depend only on
        codes, weights and the taps before the feature layer, so a refiner that changes only the
        feature computes them once. A tap at the feature layer itself is not applied.
        """

    @abstractmethod
    def from_feature(
        self,
        x: Tensor,
        ws: Tensor,
        delta: Delta | None = None,
        skip: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        """Return the image [B, 3, R, R] from the feature layer and the image so far (`trunk`).

        Taps up to the feature layer are not applied.
        """

    def to_feature(self, ws: Tensor, delta: Delta | None = None) -> Tensor:
        """Return the feature layer [B, C, h, w] of W+ codes [B, num_ws, 512]."""
        return self.trunk(ws, delta)[0]

    def synthesize(
        self, ws: Tensor, delta: Delta | None = None, taps: Taps | None = None
    ) -> Tensor:
        """Render W+ codes, optionally with refined weights and changed features.

        Args:
            ws: W+ codes, [B, num_ws, 512].
            delta: Offsets of weights for each image, name -> [B, *shape].
            taps: Functions that change the features at some of the `places`.

        Returns:
            Images [B, 3, R, R] in about [-1, 1], not clamped.

        Raises:
            ValueError: Shapes do not fit, or there is no such place.
        """
        for place in taps or ():
            self._check_place(place)
        x, skip = self.trunk(ws, delta, taps)
        if taps and self.feature_place in taps:
            x = taps[self.feature_place](x)
        return self.from_feature(x, ws, delta, skip, taps)
