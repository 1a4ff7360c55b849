"""Perceptual distances: LPIPS and shift-tolerant LPIPS, with AlexNet and VGG16.

LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924), version 0.1. Shift-tolerant LPIPS: Ghildyal and Liu, "Shift-tolerant Perceptual
Similarity Metric" (arXiv 2207.13686). These are different metrics. Each reports its own `name`, and
one is never used in place of the other.

Both compare activations f of a classification network at five layers, normalised to length 1 over
channels: ``map_l = sum_c lin_{l,c} (f_{l,c}(x) - f_{l,c}(y))^2`` and
``distance = sum_l mean(map_l)``.

`Perceptual` computes all of them, for losses and error maps. The reported LPIPS comes from the
package of its authors (`PackageLPIPS`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
LAYERS = 5
_CONV_KEY = re.compile(r"^(?:net\.slice\d+|features)\.(\d+)\.(weight|bias)$")
_CONVOLUTIONS = {"alex": 5, "vgg": 13}


class BlurPool(nn.Module):
    """Low-pass filter [1, 2, 1] x [1, 2, 1] / 16 with stride 2 and 2 px of reflected border.

    Maps [B, C, H, W] to [B, C, (H+1)//2 + 1, (W+1)//2 + 1]. Zhang, "Making Convolutional Networks
    Shift-Invariant Again" (arXiv 1904.11486).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", (row[:, None] * row).expand(channels, 1, 3, 3).clone())
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


def _compose(weight: Tensor, taps: Sequence[float], dim: int) -> Tensor:
    """Return the kernel of a correlation with `weight` and then with `taps` along `dim`."""
    grown = list(weight.shape)
    grown[dim] += len(taps) - 1
    total = weight.new_zeros(grown)
    for start, tap in enumerate(taps):
        total.narrow(dim, start, weight.shape[dim]).add_(weight, alpha=tap)
    return total


class BlurredConv(nn.Module):
    """A convolution (stride 1, zero padding 2) and the `BlurPool` after it, as one convolution.

    Both are linear, so inside the image they equal one kernel, wider by two, with stride 2, which
    takes a third of the time. At the border, reflection repeats the neighbouring output exactly,
    except at the far end of an even side, which has its own kernel.
    """

    PADDING = 2

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        inner, last = (0.25, 0.5, 0.25), (0.5, 0.5)
        for rows, row_taps in (("inner", inner), ("last", last)):
            for columns, column_taps in (("inner", inner), ("last", last)):
                kernel = _compose(_compose(weight.double(), row_taps, 2), column_taps, 3)
                self.register_buffer(f"{rows}_{columns}", kernel.float().contiguous())
        self.register_buffer("bias", bias)
        self.bias: Tensor
        self.inner_inner: Tensor
        self.inner_last: Tensor
        self.last_inner: Tensor
        self.last_last: Tensor

    def _strip(self, x: Tensor, kernel: Tensor, dims: Sequence[int]) -> Tensor:
        """Return the outputs at the far end of `dims` (2: rows, 3: columns)."""
        p, pad, stride = self.PADDING, [self.PADDING] * 4, [2, 2]
        for dim in dims:
            size = kernel.shape[dim] - p
            x = x.narrow(dim, x.shape[dim] - size, size)
            pad[2 * (3 - dim)] = 0
            stride[dim - 2] = 1
        return F.conv2d(F.pad(x, pad), kernel, self.bias, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        even_rows, even_columns = x.shape[2] % 2 == 0, x.shape[3] % 2 == 0
        y = F.conv2d(x, self.inner_inner, self.bias, stride=2, padding=self.PADDING)
        if even_columns:
            y = torch.cat([y, self._strip(x, self.inner_last, (3,))], 3)
        if even_rows:
            bottom = self._strip(x, self.last_inner, (2,))
            if even_columns:
                bottom = torch.cat([bottom, self._strip(x, self.last_last, (2, 3))], 3)
            y = torch.cat([y, bottom], 2)
        return F.pad(y, (1, int(not even_columns), 1, int(not even_rows)), mode="replicate")


def _conv(weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    out, inp, height, width = weight.shape
    conv = nn.utils.skip_init(nn.Conv2d, inp, out, (height, width), stride, padding)
    conv.weight.data, conv.bias.data = weight.contiguous(), bias
    return conv


Convolutions = Sequence[tuple[Tensor, Tensor]]


def _alex(convs: Convolutions) -> list[list[nn.Module]]:
    c1, c2, c3, c4, c5 = convs
    return [
        [_conv(*c1, stride=4, padding=2)],
        [nn.MaxPool2d(3, 2), _conv(*c2, padding=2)],
        [nn.MaxPool2d(3, 2), _conv(*c3)],
        [_conv(*c4)],
        [_conv(*c5)],
    ]


def _alex_shift_tolerant(convs: Convolutions) -> list[list[nn.Module]]:
    c1, c2, c3, c4, c5 = convs
    return [
        [BlurredConv(*c1)],
        [nn.MaxPool2d(3, 1), BlurPool(c2[0].shape[1]), _conv(*c2, padding=2)],
        [nn.MaxPool2d(3, 1), BlurPool(c3[0].shape[1]), _conv(*c3)],
        [_conv(*c4)],
        [_conv(*c5)],
    ]


def _vgg(convs: Convolutions, shift_tolerant: bool = False) -> list[list[nn.Module]]:
    taps: list[list[nn.Module]] = []
    todo = iter(convs)
    for count in (2, 2, 3, 3, 3):
        tap: list[nn.Module] = []
        for i in range(count):
            weight, bias = next(todo)
            if i == 0 and taps:
                tap += (
                    [nn.MaxPool2d(2, 1), BlurPool(weight.shape[1])]
                    if shift_tolerant
                    else [nn.MaxPool2d(2)]
                )
            elif i:
                tap.append(nn.ReLU(inplace=True))
            tap.append(_conv(weight, bias))
        taps.append(tap)
    return taps


def _unit(x: Tensor) -> Tensor:
    """Divide x [B, C, H, W] by its norm over channels, plus 1e-10 as in the published code."""
    # The clamp avoids the root of 0, which has no gradient, where all channels are 0.
    norm = x.square().sum(1, keepdim=True).clamp_min(1e-30).sqrt()
    return x / (norm + 1e-10)


class Perceptual(nn.Module):
    """A perceptual distance, differentiable in the image. Its weights are constants.

    Args:
        name: Its name in tables. It ends with the backbone, ``alex`` or ``vgg``, and starts with
            ``st_`` for the antialiased (shift-tolerant) form, such as ``st_lpips_alex``.
        weights: Convolutions of the backbone with keys ``net.slice<k>.<i>.*`` (published ST-LPIPS
            files) or ``features.<i>.*`` (torchvision), and linear layers with keys
            ``lin<k>.model.1.weight``. Other keys are ignored.

    Raises:
        ValueError: Keys are missing, or a linear weight is negative.
    """

    def __init__(self, name: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.name = name
        backbone, shift_tolerant = name.rpartition("_")[2], name.startswith("st_")
        if backbone not in _CONVOLUTIONS:
            raise ValueError(f"{name}: the name of a perceptual distance must end in _alex or _vgg")
        convs = _convolutions(weights, _CONVOLUTIONS[backbone], name)
        # The scale is part of the weights. The shift cannot be, because the border is padded with
        # zeros after it.
        scale = torch.tensor(SCALE).reshape(1, 3, 1, 1)
        convs[0] = (convs[0][0] / scale, convs[0][1])
        if backbone == "vgg":
            taps = _vgg(convs, shift_tolerant)
        else:
            taps = _alex_shift_tolerant(convs) if shift_tolerant else _alex(convs)
        self.taps = nn.ModuleList(nn.Sequential(*t, nn.ReLU(inplace=True)) for t in taps)
        self.register_buffer("shift", torch.tensor(SHIFT).reshape(1, 3, 1, 1))
        self.shift: Tensor
        for i, root in enumerate(_linear_roots(weights, name)):
            self.register_buffer(f"root{i}", root)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of images [B, 3, H, W] in [-1, 1], [B, C, h, w] for each layer.

        They are normalised over channels and multiplied by the root of the linear weights, so that
        error maps are plain sums of squared differences.
        """
        x = x - self.shift
        if x.device.type == "cpu":
            # AlexNet takes a sixth less time where channels come last.
            x = x.contiguous(memory_format=torch.channels_last)
        out = []
        for i, tap in enumerate(self.taps):
            x = tap(x)
            out.append(_unit(x) * getattr(self, f"root{i}"))
        return out

    def pooled(self, x: Tensor) -> Tensor:
        """Return spatial means of the last activations, [B, C], of [B, 3, H, W] in [-1, 1]."""
        x = x - self.shift
        for tap in self.taps:
            x = tap(x)
        return x.mean((2, 3))

    def maps(self, x: Tensor, target_features: Sequence[Tensor]) -> list[Tensor]:
        """Return error maps of images against the `features` of a target, [B, 1, h, w] each."""
        pairs = zip(self.features(x), target_features, strict=True)
        return [(a - b).square().sum(1, keepdim=True) for a, b in pairs]

    def distance(self, x: Tensor, target_features: Sequence[Tensor]) -> Tensor:
        """Return the distance to a target: the sum over layers of the means of `maps`, [B]."""
        means = [m.mean((1, 2, 3)) for m in self.maps(x, target_features)]
        return torch.stack(means).sum(0)


class PackageLPIPS(nn.Module):
    """LPIPS 0.1 as computed by its authors' package `lpips`.

    It offers `features` and `maps` as `Perceptual` does, made by the package's networks, because
    metrics of the in-domain and out-of-domain parts need the maps that `lpips.LPIPS` averages.

    Args:
        name: ``lpips_alex`` or ``lpips_vgg``.
        weights: The backbone under torchvision's names (``features.<i>.weight`` and ``.bias``) and
            the linear layers under ``lin<k>.model.1.weight``. Other keys are ignored.

    Raises:
        ValueError: A weight is missing.
    """

    def __init__(self, name: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        import lpips

        self.name = name
        self._normalised = lpips.normalize_tensor
        # The package downloads a backbone unless it is told to begin with a random one, and the
        # meta device spares drawing that. torchvision warns about how the package asks for it.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            self.network = lpips.LPIPS(
                net=name.rpartition("_")[2], pretrained=False, pnet_rand=True, verbose=False
            )
        names = {
            key: re.sub(r"^net\.slice\d\.", "features.", key)
            for key, _ in self.network.named_parameters()
        }
        if missing := [key for key in names.values() if key not in weights]:
            raise ValueError(f"{name}: the weights {', '.join(missing)} are missing")
        found = {key: weights[source] for key, source in names.items()}
        # Not strict: the package lists its linear layers under a second name as well.
        self.network.load_state_dict(found, strict=False, assign=True)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the normalised features of images [B, 3, H, W] in [-1, 1], [B, C, h, w] each."""
        return [self._normalised(f) for f in self.network.net(self.network.scaling_layer(x))]

    def maps(self, x: Tensor, target_features: Sequence[Tensor]) -> list[Tensor]:
        """Return error maps of images against the `features` of a target, [B, 1, h, w] each."""
        layers = zip(self.network.lins, self.features(x), target_features, strict=True)
        return [linear((a - b).square()) for linear, a, b in layers]


def _convolutions(
    weights: Mapping[str, Tensor], count: int, name: str
) -> list[tuple[Tensor, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if match := _CONV_KEY.match(key):
            found.setdefault(int(match[1]), {})[match[2]] = value.detach().float()
    if len(found) != count or any(len(f) != 2 for f in found.values()):
        raise ValueError(
            f"{name}: expected {count} convolutions with weight and bias under "
            f"'features.<i>' or 'net.slice<k>.<i>', found {len(found)}; use the weights of this "
            "network"
        )
    return [(found[i]["weight"], found[i]["bias"]) for i in sorted(found)]


def _linear_roots(weights: Mapping[str, Tensor], name: str) -> list[Tensor]:
    keys = [f"lin{i}.model.1.weight" for i in range(LAYERS)]
    missing = [k for k in keys if k not in weights]
    if missing:
        raise ValueError(f"{name}: the linear weights are missing: {', '.join(missing)}")
    linear = [weights[k].detach().float().reshape(1, -1, 1, 1) for k in keys]
    if any(bool((w < 0).any()) for w in linear):
        raise ValueError(f"{name}: a linear weight is negative, so the file is damaged")
    return [w.sqrt() for w in linear]


def _load(context: Context, *models: str) -> dict[str, Tensor]:
    """Return the merged state dicts of models, each a `.pth` file or a folder of them."""
    weights: dict[str, Tensor] = {}
    for model in models:
        path = Path(context.models(model))
        for file in sorted(path.glob("*.pth")) if path.is_dir() else [path]:
            weights.update(torch.load(file, map_location="cpu", weights_only=True))
    return weights


def st_lpips_alex(context: Context) -> Perceptual:
    """Load shift-tolerant LPIPS with AlexNet from the model `stlpips-alex`."""
    weights = _load(context, "stlpips-alex")
    return Perceptual("st_lpips_alex", weights).to(context.device)


def st_lpips_vgg(context: Context) -> Perceptual:
    """Load shift-tolerant LPIPS with VGG16 from the model `stlpips-vgg`."""
    weights = _load(context, "stlpips-vgg")
    return Perceptual("st_lpips_vgg", weights).to(context.device)


def lpips_alex(context: Context) -> Perceptual:
    """Load LPIPS 0.1 with AlexNet, for losses and maps.

    The models are `lpips-alex-backbone`, the AlexNet of torchvision, and `lpips-alex`, the linear
    layers of LPIPS 0.1.
    """
    weights = _load(context, "lpips-alex-backbone", "lpips-alex")
    return Perceptual("lpips_alex", weights).to(context.device)


def lpips_vgg(context: Context) -> Perceptual:
    """Load LPIPS 0.1 with VGG16, for losses and maps.

    The models are `lpips-vgg-backbone`, the VGG16 of torchvision, and `lpips-vgg`, the linear
    layers of LPIPS 0.1.
    """
    weights = _load(context, "lpips-vgg-backbone", "lpips-vgg")
    return Perceptual("lpips_vgg", weights).to(context.device)


def package_lpips_alex(context: Context) -> PackageLPIPS:
    """Load the reported LPIPS 0.1 with AlexNet, from the models of `lpips_alex`."""
    weights = _load(context, "lpips-alex-backbone", "lpips-alex")
    return PackageLPIPS("lpips_alex", weights).to(context.device)


def package_lpips_vgg(context: Context) -> PackageLPIPS:
    """Load the reported LPIPS 0.1 with VGG16, from the models of `lpips_vgg`."""
    weights = _load(context, "lpips-vgg-backbone", "lpips-vgg")
    return PackageLPIPS("lpips_vgg", weights).to(context.device)
