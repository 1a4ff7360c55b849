"""The person in a photograph, by MediaPipe's Selfie Segmentation, and a parser that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.landmarks import LandmarkParser
from dhr_batch.stages.networks.small_nets import SmallNet

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

_SIDE = 256


class Person:
    """Separate the person from the background."""

    def __init__(self, context: Context) -> None:
        self._net = SmallNet(context.models("selfie-segmentation"))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the probability that a pixel shows the person, float32 [H, W].

        Args:
            image: uint8 RGB [H, W, 3].
        """
        height, width = image.shape[:2]
        small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        (found,) = self._net(small / 255)
        return np.asarray(cv2.resize(found[0], (width, height), interpolation=cv2.INTER_LINEAR))


class PersonParser(LandmarkParser):
    """`landmarks+person`: the parser by landmarks, with the person by a network."""

    name = "landmarks+person"


def person_parser(context: Context) -> PersonParser:
    """Return the parser `landmarks+person`."""
    return PersonParser(
        context.network("landmarks", "dlib68"),
        context.network("detector", "mtcnn"),
        Person(context),
    )
