"""The table of everything that is chosen by name. A new member is one more line in it.

Families of stages (`align` to `measure`) name subclasses of `Stage`. Families of networks name
functions that take a `Context` and return the loaded network. Modules are imported on first use.

A generator may also be a file written by `dhr-batch models convert`. A name with a colon,
`package.module:Class`, is a member from another package.
"""

from __future__ import annotations

import difflib
import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

# The name of a member from another package.
OUTSIDE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
STAGES = ("align", "embed", "segment", "refine", "edit", "measure")

_S = "dhr_batch.stages."
_N = "dhr_batch.stages.networks."

TABLE: dict[str, dict[str, str]] = {
    "align": {"ffhq": _S + "align:FFHQAlign"},
    "embed": {
        "w": _S + "embed.optimise:OptimiseW",
        "w+": _S + "embed.optimise:OptimiseWPlus",
        "e4e": _S + "embed.encoders:EncodeE4E",
        "psp": _S + "embed.encoders:EncodePSP",
        "restyle-e4e": _S + "embed.encoders:ReStyleE4E",
        "restyle-psp": _S + "embed.encoders:ReStylePSP",
        "w-encoder": _S + "embed.encoders:EncodeW",
        "style-transformer": _S + "embed.encoders:EncodeStyleTransformer",
    },
    "segment": {"dhr": _S + "segment:DomainSpecific"},
    "refine": {
        "none": _S + "refine.base:NoRefinement",
        "dhr": _S + "refine.dhr:HybridRefinement",
        "dhr-published": _S + "refine.published:PublishedRefinement",
        "weights": _S + "refine.ablations:WeightModulation",
        "feature": _S + "refine.ablations:FeatureModulation",
        "pti": _S + "refine.pti:PivotalTuning",
        "hyperstyle": _S + "refine.hyperstyle:HyperStyle",
        "sam": _S + "refine.sam:SpatiallyAdaptive",
        "hfgi": _S + "refine.hfgi:ResidualConditions",
    },
    "edit": {"directions": _S + "edit.directions:Directions"},
    "measure": {"standard": _S + "measure.standard:Standard"},
    "generator": {
        "mobilestylegan-1024": _N + "generators.named:mobilestylegan_1024",
        "mobilestylegan-256": _N + "generators.named:mobilestylegan_256",
        "stylegan2-ffhq-1024": _N + "generators.named:stylegan2_ffhq_1024",
        "stylegan2-test-bed": _N + "generators.named:stylegan2_test_bed",
        "tiny": _N + "tiny:generator",
    },
    "perceptual": {
        "st_lpips_alex": _N + "perceptual:st_lpips_alex",
        "st_lpips_vgg": _N + "perceptual:st_lpips_vgg",
        "lpips_alex": _N + "perceptual:lpips_alex",
        "lpips_vgg": _N + "perceptual:lpips_vgg",
        "tiny": _N + "tiny:perceptual",
    },
    # The reported LPIPS. `perceptual` has the same distances for losses and error maps.
    "lpips": {
        "lpips_alex": _N + "perceptual:package_lpips_alex",
        "lpips_vgg": _N + "perceptual:package_lpips_vgg",
    },
    "detector": {"mtcnn": _N + "faces.detect:mtcnn"},
    "landmarks": {"dlib68": _N + "faces.dlib_face:landmarks68"},
    "identity": {
        "dlib": _N + "faces.dlib_face:identity",
        "arcface": _N + "faces.identity:arcface",
        "curricularface": _N + "faces.identity:curricularface",
        "facenet": _N + "faces.identity:facenet",
    },
    "scores": {
        "landmarks": _S + "measure.face_scores:LandmarkScores",
        "age-gender": _S + "measure.judges:AgeGender",
        "expression": _S + "measure.judges:Expression",
        "face-api": _S + "measure.judges:FaceApi",
        "hair": _S + "measure.hair:Hair",
        "mesh": _S + "measure.judges:Mesh",
    },
    "features": {
        "inception": _N + "features:inception",
        "st_alex": _N + "features:st_alex",
        "tiny": _N + "features:tiny",
    },
    "parser": {
        "landmarks": _N + "parsers.landmarks:landmark_parser",
        "landmarks+person": _N + "parsers.person:person_parser",
        "bisenet": _N + "parsers.bisenet:bisenet",
        "farl": _N + "parsers.farl:farl",
        "segformer": _N + "parsers.segformer:segformer",
        "none": _N + "parsers.parser:no_parser",
    },
}

# The models that each network loads, so that a missing file is reported before a run starts.
MODELS: dict[tuple[str, str], tuple[str, ...]] = {
    ("generator", "mobilestylegan-1024"): ("mobilestylegan-ffhq",),
    ("generator", "mobilestylegan-256"): ("mobilestylegan-ffhq", "mobilestylegan-256"),
    ("generator", "stylegan2-ffhq-1024"): ("stylegan2-ffhq-1024",),
    ("generator", "stylegan2-test-bed"): ("stylegan2-test-bed",),
    ("perceptual", "st_lpips_alex"): ("stlpips-alex",),
    ("perceptual", "st_lpips_vgg"): ("stlpips-vgg",),
    ("perceptual", "lpips_alex"): ("lpips-alex-backbone", "lpips-alex"),
    ("perceptual", "lpips_vgg"): ("lpips-vgg-backbone", "lpips-vgg"),
    ("lpips", "lpips_alex"): ("lpips-alex-backbone", "lpips-alex"),
    ("lpips", "lpips_vgg"): ("lpips-vgg-backbone", "lpips-vgg"),
    ("detector", "mtcnn"): ("mtcnn",),
    ("landmarks", "dlib68"): ("dlib-landmarks68",),
    ("identity", "dlib"): ("dlib-face-resnet",),
    ("identity", "arcface"): ("arcface-irse50",),
    ("identity", "curricularface"): ("curricularface-ir101", "mtcnn"),
    ("identity", "facenet"): ("facenet-vggface2", "mtcnn"),
    ("scores", "age-gender"): ("age-gender",),
    ("scores", "expression"): ("expression-fer",),
    ("scores", "face-api"): ("age-gender-face-api",),
    ("scores", "mesh"): ("face-mesh-468",),
    ("features", "inception"): ("inception-2015-12-05",),
    ("features", "st_alex"): ("stlpips-alex",),
    ("parser", "landmarks"): ("dlib-landmarks68", "mtcnn"),
    ("parser", "landmarks+person"): ("dlib-landmarks68", "mtcnn", "selfie-segmentation"),
    ("parser", "bisenet"): ("bisenet-19",),
    ("parser", "farl"): ("farl-celebm-448", "mtcnn"),
    ("parser", "segformer"): ("segformer-face-parsing",),
}


GENERATOR_FILE = ".safetensors"


def label(generator: str) -> str:
    """Return the name of a generator in tables and folders: of a file, its name without suffix.

    Example:
        >>> label("/models/my-cats.safetensors"), label("tiny")
        ('my-cats', 'tiny')
    """
    return Path(generator).stem if generator.endswith(GENERATOR_FILE) else generator


class InvalidInput(ValueError):
    """The input does not allow a request. The text joins the reason and the remedy.

    Args:
        reason: What was requested and why it is not possible.
        way_out: The remedy, in the imperative.
    """

    exit_code = 2

    def __init__(self, reason: str, way_out: str = "") -> None:
        self.reason, self.way_out = reason, way_out
        super().__init__("; ".join(filter(None, (reason, way_out))))

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers send their errors to the driver.
        return type(self), (self.reason, self.way_out)


class UnknownName(InvalidInput):
    """A name is not a member of its family. The remedy lists the valid names."""


def names(family: str) -> list[str]:
    """Return the valid names of a family in alphabetical order."""
    return sorted(TABLE[family])


def lookup(family: str, name: str) -> Any:
    """Return the class or function that is the member `name` of a family.

    Raises:
        UnknownName: There is no such member, or it cannot be imported.
    """
    if family == "generator" and name.endswith(GENERATOR_FILE):
        return partial(import_module(_N + "generators.named").from_file, Path(name))
    if ":" in name:
        return _outside(family, name)
    module, _, attribute = _place(family, name)
    return getattr(import_module(module), attribute)


def options(family: str, name: str) -> Any:
    """Return the class of the settings of a stage.

    If it is in `stages.options`, the stage itself is not imported, and neither is torch.

    Raises:
        UnknownName: There is no such stage, or it cannot be imported.
    """
    if ":" in name:
        return _outside(family, name).Options
    apart = import_module(f"{_S}options.{family}")
    found = getattr(apart, f"{_place(family, name)[2]}Options", None)
    return lookup(family, name).Options if found is None else found


def check_name(family: str, name: str, setting: str = "") -> None:
    """Check that a family has a member. Members from other packages are not imported.

    Args:
        family: The family.
        name: The name of the member.
        setting: The setting that names it, for the message.

    Raises:
        UnknownName: There is no such member.
    """
    if ":" not in name and name not in TABLE[family]:
        close = difflib.get_close_matches(name, TABLE[family], 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnknownName(
            f"unknown {setting or family} {name!r}{hint}",
            f"choose from: {', '.join(names(family))}",
        )


def _place(family: str, name: str) -> tuple[str, str, str]:
    check_name(family, name)
    return TABLE[family][name].partition(":")


def _outside(family: str, name: str) -> Any:
    module, _, attribute = name.partition(":")
    way_out = "give it as package.module:Class, from an installed package"
    if not OUTSIDE.fullmatch(name):
        raise UnknownName(f"{family} {name!r} cannot be imported", way_out)
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownName(f"{family} {name!r} cannot be imported: {error}", way_out) from error
