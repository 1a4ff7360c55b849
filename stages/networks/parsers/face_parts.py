"""Classes of face parts, as CelebAMask-HQ numbers them."""

from __future__ import annotations

# Skin, brows, eyes, nose, inner mouth and lips in the class order of CelebAMask-HQ.
FACE_CLASSES = (2, 6, 7, 8, 9, 10, 11, 12, 13)
CLASSES = (
    "background",
    "neck",
    "face",
    "cloth",
    "right_ear",
    "left_ear",
    "right_brow",
    "left_brow",
    "right_eye",
    "left_eye",
    "nose",
    "inner_mouth",
    "lower_lip",
    "upper_lip",
    "hair",
    "glasses",
    "hat",
    "earring",
    "necklace",
)
INDEX = {name: i for i, name in enumerate(CLASSES)}
