"""Titles, order and direction of the metrics that reports show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dhr_batch.stages.record import START, TRUTH, edit_of

if TYPE_CHECKING:
    import pandas as pd


_AT_SIZE = re.compile(r"_(\d+)$")
STAGES = ("source", "inverted", "refined")
PARTS = ("_in", "_out")
HEADLINES = ("psnr", "ssim", "st_lpips_alex", "lpips_alex", "identity_dlib_distance")
HIGHER_IS_BETTER = ("psnr", "ssim", "cosine", "realism", "iou", "precision", "recall")
# Metrics of what an edit changes on purpose, of what an occluder hides, and of masks.
NEITHER_IS_BETTER = ("score_", "change_", "truth_occluded", "in_domain", START)
TITLES = {
    "psnr": "PSNR [dB]",
    "psnr_ganinverter": "PSNR, 10·log10(2/MSE) [dB]",
    "mse": "MSE",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "st_lpips_alex": "ST-LPIPS (AlexNet)",
    "st_lpips_vgg": "ST-LPIPS (VGG)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_vgg": "LPIPS (VGG)",
    "identity_dlib_distance": "Identity distance (dlib)",
    "identity_dlib_cosine": "Identity cosine (dlib)",
    "identity_arcface_cosine": "Identity cosine (ArcFace)",
    "identity_curricularface_cosine": "Identity cosine (CurricularFace)",
    "identity_facenet_cosine": "Identity cosine (FaceNet)",
    "in_domain": "In-domain share",
    "in_domain_face": "In-domain share of the face",
    "fid": "FID",
    "kid": "KID",
    "frechet_st_alex": "Fréchet distance (ST-LPIPS AlexNet)",
    "change": "Change from the refined picture",
    "background_psnr": "Background PSNR [dB]",
    "background_psnr_refined": "Background PSNR to the refined picture [dB]",
    "ghost": "Ghost of the old contour",
    "realism": "Realism of the mouth",
    "truth_mask_iou": "Occluder found: IoU",
    "truth_mask_precision": "Occluder found: precision",
    "truth_mask_recall": "Occluder found: recall",
    "truth_mask_false": "Uncovered face out-of-domain",
    "truth_latent_w": "Error of the code, W",
    "truth_latent_w_plus": "Error of the code, W+",
    "truth_occluded": "Occluded share of the face",
}


def title(metric: str) -> str:
    """Return the title of a metric.

    >>> title("psnr_1024_in")
    'PSNR [dB] at 1024 px, in-domain'
    """
    base, size, part = split(metric)
    if metric.startswith("score_"):
        return f"Score: {metric.removeprefix('score_').replace('_', ' ')}"
    if metric.startswith(START):
        return f"Strength that changes nothing: {metric.removeprefix(START)}"
    if metric.startswith(TRUTH) and metric not in TITLES:
        return f"{title(metric.removeprefix(TRUTH))}, uncovered face"
    if base not in TITLES:
        return metric
    words = {"": "", "_in": ", in-domain", "_out": ", out-of-domain"}
    return TITLES[base] + (f" at {size} px" if size else "") + words[part]


def split(metric: str) -> tuple[str, int, str]:
    """Split the name of a metric into base name, size and part; 0 and "" if it has none.

    >>> split("psnr_1024_in"), split("ssim")
    (('psnr', 1024, '_in'), ('ssim', 0, ''))
    """
    part = next((p for p in PARTS if metric.endswith(p)), "")
    base = metric.removesuffix(part)
    size = _AT_SIZE.search(base)
    return (base[: size.start()], int(size[1]), part) if size else (base, 0, part)


def better(metric: str) -> str:
    """Return `higher` or `lower` for the better direction of a metric, or "" if there is none."""
    if metric.startswith(NEITHER_IS_BETTER):
        return ""
    return "higher" if any(word in metric for word in HIGHER_IS_BETTER) else "lower"


def stage_key(stage: str) -> tuple[int, str, float]:
    """Return a sort key: source, inverted, refined, then edits by name and strength."""
    if stage in STAGES:
        return (STAGES.index(stage), "", 0.0)
    edit = edit_of(stage)
    return (len(STAGES) + 1, stage, 0.0) if edit is None else (len(STAGES), *edit)


def metric_key(metric: str) -> tuple[int, int, int, str]:
    """Return a sort key: well-known metrics first, parts after the whole, full size last."""
    base, size, part = split(metric)
    known = list(TITLES)
    rank = known.index(base) if base in known else len(known)
    return (rank, size, len(part), metric)


def of_truth(metrics: pd.DataFrame, included: bool = True) -> pd.DataFrame:
    """Return the rows of a metrics table that compare with the ground truth.

    Args:
        metrics: The table.
        included: Whether to return these rows, or all others.
    """
    names = [name for name in metrics["metric"].unique() if name.startswith(TRUTH)]
    return metrics[metrics["metric"].isin(names) == included]
