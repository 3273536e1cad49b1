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
from scripts.metrics.area import THRESHOLDS, area_errors, middle_of_best, pixels_reaching, threshold_by_areas
from scripts.runtime.errors import InputError

__all__ = [
    "DISC_FRACTIONS",
    "ENOUGH",
    "ImageScores",
    "Thresholds",
    "baseline_table",
    "centred_disc",
    "choose_thresholds",
    "is_rough",
    "score_image",
    "summarise",
    "volume_dice",
]

DISC_FRACTIONS = tuple(fraction / 100 for fraction in range(5, 100, 5))
# validation images that choose a threshold well: of fewer than 40 one counts for more than 2.5 % of the accuracy, and
# the standard error of an accuracy of 90 % is about 5 % or more
ENOUGH = 40
BORDER = 0.07  # of the height at top and bottom, and of the width at the sides


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
    area_errors: tuple[float, ...] | None = None
    """`area_errors` of a positive image whose rough area is known."""
    border_recall: float | None = None
    """Part of the true pixels in the outer `BORDER` of the image that are predicted; None where there are none."""
    inner_recall: float | None = None
    """The same of the pixels inside of it."""
    volume: str | None = None
    """Path of the volume of which the image is a slice."""


@dataclass(frozen=True)
class Thresholds:
    """Decisions made on validation images, applied to others."""

    image: float | None
    """Image-level probability from which on an image counts as positive: the highest accuracy; None without any."""
    pixel: float | None
    """Probability from which on a pixel counts as positive: the highest `f_mean`; None without pixel truth."""
    areas: float | None = None
    """The same with the areas nearest to the stated ones, which needs no pixel truth; None without stated areas."""


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
    area: float | None = None,
    area_step: float = 0.1,
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
        area: its rough area, a fraction of the image; None where it is not known.
        area_step: to which the area is rounded up.

    Raises:
        InputError: for a threshold out of its range.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must be a fraction from 0 to 1; got {threshold!r}.")
    prediction = probability >= threshold
    reaching = pixels_reaching(probability)
    known = {
        "image": image,
        "label": label,
        "probability": image_probability,
        "area_predicted": float(prediction.mean()),
        "volume": volume,
        "area_errors": tuple(area_errors(probability, area, area_step)) if label == 1 and area is not None else None,
    }
    if truth is None:
        return ImageScores(**known)
    border = _border(truth.shape)
    discs = (centred_disc(truth.shape, fraction) for fraction in DISC_FRACTIONS)
    return ImageScores(
        **known,
        area_true=float(truth.mean()),
        f_measure=compute_region_f_measure(prediction, truth)[0],
        iou=intersection_over_union(prediction, truth),
        all_ones_f=compute_region_f_measure(np.ones_like(truth), truth)[0],
        disc_f=tuple(compute_region_f_measure(disc, truth)[0] for disc in discs),
        f_by_threshold=tuple(_f_by_threshold(reaching, pixels_reaching(probability[truth]), truth).tolist()),
        border_recall=_recall(prediction, truth & border),
        inner_recall=_recall(prediction, truth & ~border),
    )


def _border(shape: Sequence[int]) -> np.ndarray:
    """The outer `BORDER` of an image (H, W), boolean."""
    border = np.ones(shape, bool)
    height, width = (round(BORDER * size) for size in shape)
    border[height : shape[0] - height, width : shape[1] - width] = False
    return border


def _recall(prediction: np.ndarray, truth: np.ndarray) -> float | None:
    return float(prediction[truth].mean()) if truth.any() else None


def _f_by_threshold(predicted: np.ndarray, hits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """F-measure for each of `THRESHOLDS`, of how many pixels reach it, and how many true ones: float64 (99,)."""
    positives, pixels = int(truth.sum()), truth.size
    if positives:
        return 2 * hits / (predicted + positives)
    return 2 * (pixels - predicted) / (2 * pixels - predicted)


def is_rough(images: int) -> bool:
    """Whether a threshold chosen on so many images may be far from the best one of others."""
    return images < ENOUGH


def choose_thresholds(scores: Sequence[ImageScores]) -> Thresholds:
    """Thresholds with the best result on these images; the middle one where several are as good."""
    labels = np.array([s.label for s in scores]) == 1
    probabilities = np.array([s.probability for s in scores])
    values = np.unique(probabilities)
    # half-way between neighbouring probabilities, and the ends
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    accuracy = [np.mean((probabilities >= t) == labels) for t in candidates]
    image = middle_of_best(candidates, accuracy)
    errors = [s.area_errors for s in scores if s.area_errors is not None]
    areas = threshold_by_areas(np.sum(errors, axis=0)) if errors else None
    if any(s.f_by_threshold is None for s in scores):
        return Thresholds(image, None, areas)
    curves = np.array([s.f_by_threshold for s in scores])  # (images, thresholds)
    f_mean = (curves[labels].mean(axis=0) + curves[~labels].mean(axis=0)) / 2
    return Thresholds(image, middle_of_best(THRESHOLDS, f_mean), areas)


def summarise(scores: Sequence[ImageScores], thresholds: Thresholds) -> dict[str, float]:
    """
    Metrics of a split: means over the images of a class.

    Args:
        scores: of all images of the split, both classes.
        thresholds: chosen on validation images, by `choose_thresholds`.

    Returns:
        ``auc`` and, where a threshold was chosen, ``accuracy`` of the image-level probability, and ``area_threshold``;
        and, when the pixel truth of all images is known, ``f_pos``, ``f_neg``, ``f_mean``, ``dice_pos``, ``iou_pos``,
        ``border_recall``, ``inner_recall``; ``f_pos``, ``f_neg`` and ``f_mean`` at the threshold chosen by masks
        (``best_threshold_``) and by areas (``area_threshold_``), left out where there is none, of marking all pixels
        (``all_ones_``) and of a centred disc (``disc_``) of the one size with the highest ``f_pos`` here.
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
    if thresholds.areas is not None:
        image_level |= {"area_threshold": thresholds.areas}
    if any(s.f_measure is None for s in scores):
        return image_level
    positive = labels == 1
    discs = np.array([s.disc_f for s in scores])  # (images, fractions)
    disc = int(discs[positive].mean(axis=0).argmax())
    at_best = {}
    # None: this split has masks or areas, validation has not, or there is none
    for name, threshold in {"best_threshold": thresholds.pixel, "area_threshold": thresholds.areas}.items():
        if threshold is not None:
            values = [s.f_by_threshold[THRESHOLDS.index(threshold)] for s in scores]
            at_best |= _by_class(f"{name}_", values, positive) | {name: threshold}
    regions = {
        **_by_class("", [s.f_measure for s in scores], positive),
        # of a positive image the F-measure is the Dice coefficient
        "dice_pos": float(np.mean([s.f_measure for s in scores if s.label == 1])),
        **_means_of_known(scores, ("border_recall", "inner_recall")),
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


def _means_of_known(scores: Sequence[ImageScores], names: Sequence[str]) -> dict[str, float]:
    known = {name: [getattr(s, name) for s in scores if getattr(s, name) is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


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
    if "area_threshold" in metrics:
        rows[f"at the threshold of the areas there, {metrics['area_threshold']:.2f}"] = "area_threshold_"
    rows |= {
        "all pixels marked": "all_ones_",
        f"centred disc, {metrics['disc_area']:.0%} of the image": "disc_",
    }
    lines = [f"{'':<48}{'F+':>8}{'F-':>8}{'mean':>8}"]
    for name, prefix in rows.items():
        cells = "".join(f"{metrics[prefix + key]:>8.3f}" for key in ("f_pos", "f_neg", "f_mean"))
        lines.append(f"{name:<48}{cells}")
    return "\n".join(lines)
