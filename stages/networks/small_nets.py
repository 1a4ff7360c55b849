"""Small networks in ONNX and TFLite files, which OpenCV computes on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np


class SmallNet:
    """A network that several threads may use, one after the other.

    Args:
        file: The network, a file with the ending `.onnx` or `.tflite`.
    """

    def __init__(self, file: Path) -> None:
        read = cv2.dnn.readNetFromTFLite if file.suffix == ".tflite" else cv2.dnn.readNetFromONNX
        # The engine that OpenCV 5 added loses outputs of TFLite files. OpenCV 4 has only the other.
        engine = getattr(cv2.dnn, "ENGINE_CLASSIC", None)
        self._net = read(str(file)) if engine is None else read(str(file), engine=engine)
        self._outputs = self._net.getUnconnectedOutLayersNames()
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of the network for one picture, float32 without the batch axis.

        A batch would take as long as its pictures one by one.

        Args:
            picture: Values as the network expects them, [H, W, 3].
        """
        batch = np.ascontiguousarray(picture.astype(np.float32).transpose(2, 0, 1)[None])
        with self._lock:
            self._net.setInput(batch)
            return [np.array(output[0]) for output in self._net.forward(self._outputs)]
