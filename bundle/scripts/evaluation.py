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

__all__ = ["DISC_FRACTIONS", "ImageScores", "best_threshold", "centred_disc", "score_image", "summarise"]

DISC_FRACTIONS = tuple(fraction / 100 for fraction in range(5, 100, 5))


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
    image: str, label: int, probability: float, prediction: np.ndarray, truth: np.ndarray | None
) -> ImageScores:
    """
    Scores of one image and of the trivial answers to it.

    Args:
        image: its name.
        label: 0 or 1.
        probability: image-level probability, 0..1.
        prediction: boolean (H, W).
        truth: boolean (H, W), or None where it is not known.
    """
    known = {"image": image, "label": label, "probability": probability, "area_predicted": float(prediction.mean())}
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
    )


def best_threshold(labels: Sequence[int], probabilities: Sequence[float]) -> float:
    """
    Threshold with the highest accuracy of ``probability >= threshold``; the middle one where several are as good.

    Candidates lie half-way between neighbouring probabilities, and at the ends 0 and 1.
    """
    values = np.unique(probabilities)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    hits = [np.mean((np.asarray(probabilities) >= t) == (np.asarray(labels) == 1)) for t in candidates]
    best = candidates[np.isclose(hits, max(hits))]
    return float(best[len(best) // 2])


def summarise(scores: Sequence[ImageScores], image_threshold: float) -> dict[str, float]:
    """
    Metrics of a split: means over the images of a class.

    Args:
        scores: of all images of the split, both classes.
        image_threshold: decides the image-level accuracy; choose it on other images, by `best_threshold`.

    Returns:
        ``auc`` and ``accuracy`` of the image-level probability; and, when the pixel truth of all images is known,
        ``f_pos``, ``f_neg``, ``f_mean``, ``dice_pos``, ``iou_pos``, and ``f_pos`` and ``f_neg`` of marking all
        pixels (``all_ones_``) and of a centred disc (``disc_``) of the one size with the highest ``f_pos`` here.
    """
    labels = np.array([s.label for s in scores])
    probabilities = np.array([s.probability for s in scores])
    summary = {
        "auc": float(compute_roc_auc(torch.tensor(probabilities), torch.tensor(labels))),
        "accuracy": float(np.mean((probabilities >= image_threshold) == (labels == 1))),
        "image_threshold": image_threshold,
    }
    if any(s.f_measure is None for s in scores):
        return summary
    positive = labels == 1
    f = np.array([s.f_measure for s in scores])
    all_ones = np.array([s.all_ones_f for s in scores])
    discs = np.array([s.disc_f for s in scores])  # (images, fractions)
    disc = int(discs[positive].mean(axis=0).argmax())
    regions = {
        "f_pos": f[positive].mean(),
        "f_neg": f[~positive].mean(),
        "f_mean": (f[positive].mean() + f[~positive].mean()) / 2,
        # of a positive image the F-measure is the Dice coefficient
        "dice_pos": f[positive].mean(),
        "iou_pos": np.mean([s.iou for s in scores if s.label == 1]),
        "all_ones_f_pos": all_ones[positive].mean(),
        "all_ones_f_neg": all_ones[~positive].mean(),
        "disc_f_pos": discs[positive, disc].mean(),
        "disc_f_neg": discs[~positive, disc].mean(),
        "disc_area": DISC_FRACTIONS[disc],
    }
    return {name: float(value) for name, value in regions.items()} | summary
