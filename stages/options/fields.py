"""Types of settings that several stages share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

# Networks that compare pictures; the name of the setting is that of their family in the registry.
Perceptual = Annotated[
    str,
    Field(description="network that says how different two pictures look to people"),
]
PerceptualSize = Annotated[
    int,
    Field(
        ge=32,
        description="the perceptual network sees pictures reduced to at most this size, in pixels",
    ),
]
Parser = Annotated[
    str, Field(description="what finds the parts of a face (skin, hair, eyes, ...) in a photograph")
]
Model = Annotated[
    str, Field(description="model with the trained weights, a name in `dhr-batch models list`")
]
_Share = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[_Share, _Share],
    Field(
        description="the two decay factors of the optimiser Adam, for the means of gradients and "
        "of their squares; larger values remember more of earlier steps"
    ),
]
Rates = Literal["relative", "absolute"]
