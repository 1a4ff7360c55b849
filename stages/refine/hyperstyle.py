"""HyperStyle: a network predicts factors of the generator's convolutions from the photograph.

Alaluf et al., "HyperStyle: StyleGAN Inversion with HyperNetworks for Real Image Editing" (arXiv
2111.15666). With the code w, the photograph x and the hypernetwork H, the factors S start at 0, and
each pass adds to them:

    S <- S + H(x, G(w; W (1 + S)))

Nothing is optimised. An edit is rendered with the same factors. What is stored is not S, 66 MB of
an image for the published network, but the sum of the codes from which its last layers make S, and
the number of passes, 28.7 kB (`networks.encoders.hyperstyle`). The picture of a run is rendered
from these as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.encoders import encoder_input
from dhr_batch.stages.networks.encoders import hyperstyle
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.options.refine import HyperStyleOptions
from dhr_batch.stages.refine.base import Refinement, Refiner
from dhr_batch.stages.registry import InvalidInput


class HyperStyle(Refiner):
    """`hyperstyle`: factors of convolutions from a hypernetwork, in a few passes.

    The published network was trained on codes of the embedder `w-encoder`.
    """

    Options = HyperStyleOptions

    def models(self, aligned: bool) -> set[str]:
        return {self.options.model}

    def render_models(self) -> set[str]:
        return {self.options.model}

    def setup_render(self, context: Context) -> None:
        super().setup_render(context)
        if not isinstance(self.generator, StyleGAN2):
            raise InvalidInput(
                f"refine.name=hyperstyle changes a StyleGAN2, and {context.generator} is none",
                "choose generator=stylegan2-ffhq-1024 or another refiner",
            )
        try:
            path = context.models(self.options.model)
            self.factors = hyperstyle.load_factors(path, self.generator).to(context.device)
        except hyperstyle.OtherGenerator as error:
            way_out = "choose a generator of its widths, such as stylegan2-ffhq-1024"
            raise InvalidInput(str(error), way_out) from error
        names = hyperstyle.convolutions(self.generator)
        self.names = {layer: f"{names[layer]}.weight" for layer in self.factors.layers}

    def setup(self, context: Context) -> None:
        super().setup(context)
        codes = hyperstyle.load_codes(context.models(self.options.model), self.factors.layers)
        self.codes = codes.to(context.device)

    @torch.no_grad()
    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        target, refinement = encoder_input(images), Refinement()
        for done in self.counted(range(self.options.passes)):
            picture = encoder_input(self.render(ws, refinement, masks))
            codes = self.codes(torch.cat([target, picture], 1)).to(ws)
            passes = torch.full((len(ws), 1), done + 1, dtype=torch.uint8, device=ws.device)
            codes = codes + refinement.state["codes"] if done else codes
            refinement = Refinement(state={"codes": codes, "passes": passes})
        return refinement

    def unpacked(self, refinement: Refinement) -> Refinement:
        """See `Refiner.unpacked`. The codes of factors become offsets of weights."""
        if not (state := refinement.state):
            return refinement
        changed = self.factors(state["codes"], state["passes"].to(state["codes"]))
        weights = {layer: self.generator.weight(self.names[layer]) for layer in changed}
        delta = {self.names[k]: weights[k] * factors for k, factors in changed.items()}
        return Refinement(refinement.delta | delta, refinement.feature)
