"""HFGI: add what the inversion has lost as conditions of the generator, in one pass.

Wang et al., "High-Fidelity GAN Inversion for Image Attribute Editing" (CVPR 2022, arXiv
2109.06590).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders import hfgi
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.options.refine import ResidualConditionsOptions
from dhr_batch.stages.refine.base import Refinement, Refiner
from dhr_batch.stages.tensors import downsample

PLACE = (hfgi.CONDITIONED, "up")
RESIDUAL = "residual"


class ResidualConditions(Refiner):
    """`hfgi`: scale and shift the features of 64 px by what the inversion has lost.

    The residual ``r = x - G(w)`` at 256 px is moved to where the content lies in the render of the
    code that is shown, and becomes two maps s and t for ``h <- h (1 + s) + t``. An edit aligns the
    residual to its own render, so it costs two renders. Nothing is optimised and weights do not
    change. Only the residual is stored, as float16, with errors up to a sixteenth of a grey level.

    The networks belong to the features of StyleGAN2-FFHQ and to codes of the e4e encoder in the
    same file (`embed={name: e4e, model: hfgi-ffhq}`). The published code leaves out edits of the
    pose: its authors write that misalignment is larger there, and that they align in a further step
    before the network, which they did not publish (github.com/Tengfei-Wang/HFGI, issue 2).
    """

    Options = ResidualConditionsOptions

    def models(self, aligned: bool) -> set[str]:
        return self.render_models()

    def render_models(self) -> set[str]:
        return {self.options.model}

    def setup_render(self, context: Context) -> None:
        """Load both networks.

        Raises:
            InvalidInput: The generator is no StyleGAN2, or has other features at 64 px.
            ValueError: The file has other weights.
        """
        super().setup_render(context)
        align, consult = hfgi.load(context.models(self.options.model))
        net = self.generator
        fits = isinstance(net, StyleGAN2) and PLACE in net.places
        if not fits or net.place_shape(PLACE)[0] != consult.width:
            raise registry.InvalidInput(
                f"refine.name=hfgi: {self.options.model} changes the {consult.width} channels of "
                f"StyleGAN2 at {hfgi.CONDITIONED} px, which the generator "
                f"{registry.label(context.generator)} does not have",
                "set generator=stylegan2-ffhq-1024, or choose another refine.name",
            )
        self.align, self.consult = align.to(context.device), consult.to(context.device)

    @torch.no_grad()
    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        target = hfgi.resized(downsample(images, hfgi.SIZE))
        # The stored numbers are the ones that are rendered.
        return Refinement(state={RESIDUAL: (target - self._seen(ws)).half()})

    def render(self, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
        return self._conditioned(ws, refinement)

    def render_edit(
        self,
        ws: Tensor,
        edited: Tensor,
        refinement: Refinement,
        masks: Tensor,
        styles: dict[str, Tensor] | None = None,
    ) -> Tensor:
        return self._conditioned(edited, refinement.expand(len(edited)), styles)

    def _conditioned(
        self, ws: Tensor, refinement: Refinement, styles: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Render codes [B, L, 512] with the residuals of a refinement, aligned to each render."""
        render = self._seen(ws, styles)
        residual = refinement.state[RESIDUAL].to(render.dtype)
        scale, shift = self.consult(self.align(torch.cat([residual, render], 1)))
        taps = {PLACE: lambda features: features * (1 + scale) + shift}
        return self.generator.synthesize(ws, styles, taps)

    def _seen(self, ws: Tensor, styles: dict[str, Tensor] | None = None) -> Tensor:
        """Return the unconditioned render of codes as the networks see it, [B, 3, 256, 256]."""
        return hfgi.resized(self.generator.synthesize(ws, styles).clamp(-1, 1))
