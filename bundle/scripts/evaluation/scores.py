# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Scores of each image and their summary, with those of answers that know nothing of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_roc_auc

from scripts.metrics import compute_region_f_measure, intersection_over_union
from scripts.runtime.errors import InputError

__all__ = [
    "DISC_FRACTIONS",
    "THRESHOLDS",
    "ImageScores",
    "Thresholds",
    "baseline_table",
    "centred_disc",
    "choose_thresholds",
    "score_image",
    "summarise",
    "volume_dice",
]

DISC_FRACTIONS = tuple(fraction / 100 for fraction in range(5, 100, 5))
THRESHOLDS = tuple(threshold / 100 for threshold in range(1, 100))


@dataclass(frozen=True)
class ImageScores:
    """What is known of one image after evaluation; region scores are None where its pixel truth is not known."""

    image: str
    label: int
    probability: float
    """Image-level probability, the pooled map."""
    area_predicted: float
    """Fraction of the pixels predicted positive."""
    area_true: float | None = None
    f_measure: float | None = None
    iou: float | None = None
    all_ones_f: float | None = None
    disc_f: tuple[float, ...] | None = None
    """F-measure of a centred disc of each of `DISC_FRACTIONS`."""
    f_by_threshold: tuple[float, ...] | None = None
    """F-measure of {p >= t} for each t of `THRESHOLDS`."""
    volume: str | None = None
    """Path of the volume of which the image is a slice."""


@dataclass(frozen=True)
class Thresholds:
    """Decisions made on validation images, applied to others."""

    image: float | None
    """Image-level probability from which on an image counts as positive: the highest accuracy; None without any."""
    pixel: float | None
    """Probability from which on a pixel counts as positive: the highest `f_mean`; None without pixel truth."""


def centred_disc(shape: Sequence[int], fraction: float) -> np.ndarray:
    """
    Disc in the middle of an image that covers a fraction of it, cut off by the frame where it reaches it.

    Args:
        shape: (H, W).
        fraction: of the image's pixels, 0..1.

    Returns:
        Boolean (H, W).
    """
    rows, columns = (np.arange(size) - (size - 1) / 2 for size in shape)
    distance = np.hypot(rows[:, None], columns[None, :])
    return distance <= np.quantile(distance, fraction)


def score_image(
    image: str,
    label: int,
    image_probability: float,
    probability: np.ndarray,
    truth: np.ndarray | None,
    threshold: float = 0.5,
    volume: str | None = None,
) -> ImageScores:
    """
    Scores of one image and of the trivial answers to it.

    Args:
        image: its name.
        label: 0 or 1.
        image_probability: pooled probability, 0..1.
        probability: (H, W) in 0..1.
        truth: boolean (H, W), or None where it is not known.
        threshold: probability from which on a pixel is predicted positive.
        volume: path of the volume of which it is a slice.

    Raises:
        InputError: for a threshold out of its range.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a fraction from 0 to 1; got {threshold!r}.")
    prediction = probability >= threshold
    known = {
        "image": image,
        "label": label,
        "probability": image_probability,
        "area_predicted": float(prediction.mean()),
        "volume": volume,
    }
    if truth is None:
        return ImageScores(**known)
    discs = (centred_disc(truth.shape, fraction) for fraction in DISC_FRACTIONS)
    return ImageScores(
        **known,
        area_true=float(truth.mean()),
        f_measure=compute_region_f_measure(prediction, truth)[0],
        iou=intersection_over_union(prediction, truth),
        all_ones_f=compute_region_f_measure(np.ones_like(truth), truth)[0],
        disc_f=tuple(compute_region_f_measure(disc, truth)[0] for disc in discs),
        f_by_threshold=tuple(_f_by_threshold(probability, truth).tolist()),
    )


def _f_by_threshold(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F-measure of {p >= t} for each of `THRESHOLDS`, from one pass over the pixels: float64 (99,)."""
    levels = np.searchsorted(np.asarray(THRESHOLDS), probability, side="right")  # number of thresholds reached
    bins = len(THRESHOLDS) + 1
    # pixels that reach threshold k are those of the levels above k
    predicted, hits = (
        np.bincount(chosen.ravel(), minlength=bins)[::-1].cumsum()[::-1][1:] for chosen in (levels, levels[truth])
    )
    positives, pixels = int(truth.sum()), truth.size
    if positives:
        return 2 * hits / (predicted + positives)
    return 2 * (pixels - predicted) / (2 * pixels - predicted)


def choose_thresholds(scores: Sequence[ImageScores]) -> Thresholds:
    """Thresholds with the best result on these images; the middle one where several are as good."""
    labels = np.array([s.label for s in scores]) == 1
    probabilities = np.array([s.probability for s in scores])
    values = np.unique(probabilities)
    # half-way between neighbouring probabilities, and the ends
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    accuracy = [np.mean((probabilities >= t) == labels) for t in candidates]
    image = _middle_of_best(candidates, accuracy)
    if any(s.f_by_threshold is None for s in scores):
        return Thresholds(image, None)
    curves = np.array([s.f_by_threshold for s in scores])  # (images, thresholds)
    f_mean = (curves[labels].mean(axis=0) + curves[~labels].mean(axis=0)) / 2
    return Thresholds(image, _middle_of_best(np.asarray(THRESHOLDS), f_mean))


def _middle_of_best(candidates: np.ndarray, values: Sequence[float]) -> float:
    best = candidates[np.isclose(values, np.max(values))]
    return float(best[len(best) // 2])


def summarise(scores: Sequence[ImageScores], thresholds: Thresholds) -> dict[str, float]:
    """
    Metrics of a split: means over the images of a class.

    Args:
        scores: of all images of the split, both classes.
        thresholds: chosen on validation images, by `choose_thresholds`.

    Returns:
        ``auc`` and, where a threshold was chosen, ``accuracy`` of the image-level probability; and, when the pixel
        truth of all images is known, ``f_pos``, ``f_neg``, ``f_mean``, ``dice_pos``, ``iou_pos``; ``f_pos``, ``f_neg``
        and ``f_mean`` at the threshold chosen (``best_threshold_``; left out where there is none), of marking all
        pixels (``all_ones_``) and of a centred disc (``disc_``) of the one size with the highest ``f_pos`` here.
    """
    labels = np.array([s.label for s in scores])
    probabilities = np.array([s.probability for s in scores])
    image_level = {
        "auc": float(compute_roc_auc(torch.tensor(probabilities), torch.tensor(labels))),
    }
    if thresholds.image is not None:
        image_level |= {
            "accuracy": float(np.mean((probabilities >= thresholds.image) == (labels == 1))),
            "image_threshold": thresholds.image,
        }
    if any(s.f_measure is None for s in scores):
        return image_level
    positive = labels == 1
    discs = np.array([s.disc_f for s in scores])  # (images, fractions)
    disc = int(discs[positive].mean(axis=0).argmax())
    at_best = {}
    if thresholds.pixel is not None:  # None: this split has masks, validation has not, or there is none
        values = [s.f_by_threshold[THRESHOLDS.index(thresholds.pixel)] for s in scores]
        at_best = _by_class("best_threshold_", values, positive) | {"best_threshold": thresholds.pixel}
    regions = {
        **_by_class("", [s.f_measure for s in scores], positive),
        # of a positive image the F-measure is the Dice coefficient
        "dice_pos": float(np.mean([s.f_measure for s in scores if s.label == 1])),
        "iou_pos": float(np.mean([s.iou for s in scores if s.label == 1])),
        **at_best,
        **_by_class("all_ones_", [s.all_ones_f for s in scores], positive),
        **_by_class("disc_", discs[:, disc], positive),
        "disc_area": DISC_FRACTIONS[disc],
    }
    return regions | image_level


def volume_dice(scores: Sequence[ImageScores]) -> dict[str, float]:
    """
    Dice coefficient of each volume, over the voxels of all slices that were scored; empty for pictures.

    1 for a volume without a positive voxel in which none is predicted. A slice's intersection is half its Dice, which
    is its F-measure, times the two areas; all slices of a volume are of one size.
    """
    sums: dict[str, np.ndarray] = {}
    for s in scores:
        if s.volume is not None and s.f_measure is not None:
            areas = s.area_predicted + s.area_true
            overlap = s.f_measure * areas if s.area_true > 0 else 0.0
            sums[s.volume] = sums.get(s.volume, np.zeros(2)) + np.array([overlap, areas])
    return {volume: float(overlap / areas) if areas else 1.0 for volume, (overlap, areas) in sums.items()}


def _by_class(prefix: str, values: Sequence[float], positive: np.ndarray) -> dict[str, float]:
    values = np.asarray(values)
    f_pos, f_neg = float(values[positive].mean()), float(values[~positive].mean())
    return {f"{prefix}f_pos": f_pos, f"{prefix}f_neg": f_neg, f"{prefix}f_mean": (f_pos + f_neg) / 2}


def baseline_table(metrics: dict[str, float]) -> str:
    """The region scores of `summarise` beside those that cost nothing, as lines of text; empty without them."""
    if "f_pos" not in metrics:
        return ""
    rows = {"prediction": ""}
    if "best_threshold" in metrics:
        rows[f"at the threshold best on validation, {metrics['best_threshold']:.2f}"] = "best_threshold_"
    rows |= {
        "all pixels marked": "all_ones_",
        f"centred disc, {metrics['disc_area']:.0%} of the image": "disc_",
    }
    lines = [f"{'':<48}{'F+':>8}{'F-':>8}{'mean':>8}"]
    for name, prefix in rows.items():
        cells = "".join(f"{metrics[prefix + key]:>8.3f}" for key in ("f_pos", "f_neg", "f_mean"))
        lines.append(f"{name:<48}{cells}")
    return "\n".join(lines)
