"""The person in a photograph, by MediaPipe's Selfie Segmentation, and a parser that uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.networks.parsers.landmarks import LandmarkParser
from dhr_batch.stages.networks.small_nets import SmallNet

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.detect import Detector
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68

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
    """`landmarks+person`: the parser by landmarks, and a network that finds the whole person.

    Colours lose hair, the crown of the head and clothes in some pictures, which edits would then
    leave behind. What the network takes for the person and colours for the background is cloth
    here: its class is not known, but like clothes it is out-of-domain and moves with the person.
    """

    name = "landmarks+person"

    def __init__(
        self,
        landmarks: Landmarks68,
        detector: Detector,
        person: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        super().__init__(landmarks, detector)
        self.person = person

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """See `Parser.parse`."""
        probs = super().parse(image)
        if probs is not None:
            missed = probs[INDEX["background"]] * self.person(image)
            probs[INDEX["cloth"]] += missed
            probs[INDEX["background"]] -= missed
        return probs


def person_parser(context: Context) -> PersonParser:
    """Return the parser `landmarks+person`."""
    return PersonParser(
        context.network("landmarks", "dlib68"),
        context.network("detector", "mtcnn"),
        Person(context),
    )
