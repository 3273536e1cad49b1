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

"""
Area-ranked labels: the rough area as a budget of pixels, spent on those that a teacher ranks highest.

A rough area a, rounded up to a step s, says that between a - s and a of the image is positive, not where. The teacher
says where: of an image's N pixels, the (a - s) N that it ranks highest are positive, those below the a N highest are
negative, and those between may be either. It is an expectation-maximisation step with the area as its constraint. A
part u of the interval, in its middle, is left without labels: all of it by default, but half of it at most where the
area is a step or less, or else no pixel of a small structure would ever be positive.
Pixels under strokes have the strokes' label, and come out of the budget first.

Shapes: a probability map is (B, M, H, W), M maps of B images; a weak target is (B, 2), label and area, NaN where it is
not known; a ranking, superpixels, strokes and the region of the image are (B, 1, H, W). Everything is computed in
float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from scripts.images.strokes import NEGATIVE, POSITIVE
from scripts.losses.cdws import check_target, mil_loss
from scripts.losses.constraints import check_areas
from scripts.losses.instances import check_regions, paint_superpixels
from scripts.losses.pooling import Pooling, masked_mean
from scripts.losses.strokes import P_MIN, labelled_cross_entropy, stroke_loss
from scripts.runtime.errors import InputError
from scripts.runtime.values import fraction, number, positive_fraction

__all__ = ["AreaRankedLoss", "area_ranked_labels", "proportion_loss"]

UNSURE_OF_SMALL = 0.5  # u at most, where the area is a step or less


def area_ranked_labels(
    ranking: torch.Tensor,
    area: torch.Tensor,
    area_step: float,
    valid: torch.Tensor | None = None,
    strokes: torch.Tensor | None = None,
    unsure: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Label of each pixel by its rank and the area.

    Pixels of equal score have equal labels: those that the end of a budget would divide have none.

    Args:
        ranking: (B, 1, H, W), any scores, higher where positive is likelier.
        area: (B,), rough area as a fraction of the image, rounded up to a step; 0 for a negative image.
        area_step: that step, a fraction of the image.
        valid: (B, 1, H, W), above 0 where a pixel belongs to the image; all of them where it is None.
        strokes: (B, 1, H, W), see `scripts.images.strokes`: pixels whose label is theirs, whatever their score.
        unsure: u, the part of the interval between the area less a step and the area whose pixels have no label; a half
            at most where no pixel would be surely positive.

    Returns:
        Labels (B, 1, H, W), 0. or 1.; and (B, 1, H, W), True for the pixels that have one.

    Examples:
        >>> ranking = torch.tensor([[[[0.9, 0.4], [0.7, 0.1]]]])
        >>> labels, known = area_ranked_labels(ranking, torch.tensor([0.5]), area_step=0.25)
        >>> labels[0, 0].tolist(), known[0, 0].tolist()
        ([[1.0, 0.0], [0.0, 0.0]], [[True, True], [False, True]])
    """
    score = ranking.detach().float().flatten(1)  # (B, N)
    inside = torch.ones_like(score, dtype=torch.bool) if valid is None else valid.to(score.device).flatten(1) > 0
    painted = torch.zeros_like(score) if strokes is None else strokes.to(score.device).flatten(1)
    score = score.masked_fill(painted == POSITIVE, torch.inf).masked_fill(painted == NEGATIVE, -torch.inf)
    ordered = torch.where(inside, score, -torch.inf).sort(dim=1, descending=True).values
    count = inside.sum(dim=1)  # (B,)
    least = (area - area_step).clamp(min=0)
    small = (least * count).round() == 0
    taken = (1 - torch.where(small, min(unsure, UNSURE_OF_SMALL), unsure)) / 2 * (area - least)  # off both ends
    surely = ((least + taken) * count).round().long()
    at_most = ((area - taken) * count).round().long()

    def at(place: torch.Tensor) -> torch.Tensor:
        return ordered.gather(1, place.clamp(0, ordered.shape[1] - 1).view(-1, 1))

    positive = inside & ((score > at(surely)) | (surely >= count).view(-1, 1))
    negative = inside & ((score < at(at_most - 1)) | (at_most == 0).view(-1, 1))
    positive = (positive & (painted != NEGATIVE)) | (painted == POSITIVE)
    negative = (negative & (painted != POSITIVE)) | (painted == NEGATIVE)
    return positive.float().view_as(ranking), (positive | negative).view_as(ranking)


def proportion_loss(v: torch.Tensor, proportion: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy between a map's mean probability and the proportion of positive pixels: 0 where they are equal.

    The entropy of the proportion, which no map can go below, is taken off.

    Args:
        v: (B, M) mean probability.
        proportion: (B, 1) in 0..1.

    Returns:
        (B, M).
    """
    v, q = v.clamp(P_MIN, 1 - P_MIN), proportion.expand_as(v)
    return F.binary_cross_entropy(v, q, reduction="none") + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)


class AreaRankedLoss(nn.Module):
    """
    Cross-entropy of the pixels with their area-ranked labels, see `area_ranked_labels`, summed over the maps.

    For the first epochs there is no ranking worth following. Until then, and wherever no ranking is given, a positive
    image costs the `proportion_loss` of its mean against the middle of its area's interval, a - s / 2. A negative
    image costs the cross-entropy of all its pixels, a positive one of unknown area the MIL loss, always.

    A last term keeps the mean v of a positive map in the interval while labels are ranked:
    w max(0, |v - (a - s/2)| - s/2)^2.

    A network that was shown a window of each image has its map ``seen`` there alone; what the teacher says of the rest
    stands in for it in v. Labels are of the whole image: a window has no area of its own.

    With superpixels each pixel has the mean of its superpixel, in the ranking and in the map.

    Strokes cost the `stroke_loss` besides, always.

    Args:
        area_step: s, a fraction of the image.
        warm_up: epochs without ranking.
        teacher_decay: how much of its weights the teacher keeps at each step, see `AccumulatingTrainer`. None: there is
            no teacher, and the ranking comes with the images, see `RankingMapd`.
        interval_weight: w.
        pool: of the MIL loss; the paper's generalized mean by default.
        stroke_weight: of the strokes' loss.
        unsure: u, the part of the interval whose pixels have no label, 0..1; a half at most for an area of a step.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value an image.

    Raises:
        InputError: for an unknown `reduction`, a step that is not above 0 and up to 1, a decay that is not
            below 1, a `warm_up`, a decay or a weight below 0, and an `unsure` that is no fraction.

    Examples:
        The teacher ranks the left pixel highest, and an area of 0.5 says it is positive: -log 0.8, and -log(1 - 0.2).

        >>> maps, ranking = torch.tensor([[[[0.8, 0.2]]]]), torch.tensor([[[[0.9, 0.4]]]])
        >>> AreaRankedLoss(area_step=0.1)(maps, torch.tensor([[1.0, 0.5]]), ranking)
        tensor(0.2231)
    """

    # of a batch, beside prediction and target
    inputs = ("ranking", "superpixels", "valid", "window", "seen", "strokes")

    def __init__(
        self,
        area_step: float = 0.1,
        warm_up: int = 1,
        teacher_decay: float | None = 0.98,
        interval_weight: float = 5.0,
        pool: Pooling | None = None,
        stroke_weight: float = 1.0,
        unsure: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise InputError(f"reduction must be 'mean' or 'none', got '{reduction}'.")
        positive_fraction("area_step", area_step)
        if teacher_decay is not None:
            fraction("teacher_decay", teacher_decay)
        if teacher_decay == 1:
            raise InputError("teacher_decay must be below 1, or the teacher never learns; got 1.")
        number("warm_up", warm_up)
        number("interval_weight", interval_weight)
        number("stroke_weight", stroke_weight)
        fraction("unsure", unsure)
        self.area_step = area_step
        self.warm_up = warm_up
        self.teacher_decay = teacher_decay
        self.interval_weight = interval_weight
        self.stroke_weight = stroke_weight
        self.unsure = unsure
        self.pool = pool or Pooling()
        self.reduction = reduction
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch begins, from 1."""
        self.epoch = epoch

    @property
    def needs_ranking(self) -> bool:
        """Whether the warm-up is over."""
        return self.epoch > self.warm_up

    def ranks(self, target: torch.Tensor) -> torch.Tensor:
        """Which images' pixels are ranked, the positive ones: of targets (B, 2) boolean (B,)."""
        return target[:, 0] > 0.5

    def forward(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        ranking: torch.Tensor | None = None,
        superpixels: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
        strokes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            prediction: (B, M, H, W) in 0..1.
            target: (B, 2), label and area.
            ranking: (B, 1, H, W), the teacher's map; None in the warm-up.
            superpixels: (B, 1, H, W), integer labels from 0, or None.
            valid: (B, 1, H, W), above 0 where a pixel belongs to the image, where images have been padded.
            seen: (B, 1, H, W), True where the prediction is the network's, all of it by default; with a ranking.
            strokes: (B, 1, H, W), see `scripts.images.strokes`, or None.

        Returns:
            A scalar for reduction ``"mean"``, (B,) for ``"none"``.

        Raises:
            ValueError: when shapes don't fit; `InputError` for a label that is not 0 or 1, or an area not in 0..1.
        """
        check_target(prediction, target)
        check_regions(prediction, ranking=ranking, superpixels=superpixels, valid=valid, seen=seen, strokes=strokes)
        label, area = target[:, 0], target[:, 1]
        unknown = (label > 0.5) & area.isnan()
        area = torch.where(label > 0.5, check_areas(label, area).nan_to_num(1.0), 0.0)
        with torch.autocast(prediction.device.type, enabled=False):
            p = prediction.float()
            if superpixels is not None:
                p = paint_superpixels(p, superpixels, valid if seen is None else seen)
                ranking = None if ranking is None else paint_superpixels(ranking.float(), superpixels, valid)
            mask = None if valid is None else valid[:, 0].to(p.device) > 0
            whole = p if seen is None else torch.where(seen, p, ranking.float())
            v, middle = masked_mean(whole, mask), (area - self.area_step / 2).clamp(min=0).view(-1, 1)
            if ranking is None:
                negative = -masked_mean(torch.log1p(-p.clamp(max=1 - P_MIN)), mask)
                positive = proportion_loss(v, middle)
            else:
                labels, known = area_ranked_labels(ranking, area, self.area_step, valid, strokes, self.unsure)
                negative = labelled_cross_entropy(p, labels, known if seen is None else known & seen)
                excess = ((v - middle).abs() - self.area_step / 2).clamp(min=0)
                positive = negative + self.interval_weight * excess.square()
            cost = torch.where((label > 0.5).view(-1, 1), positive, negative)
            if unknown.any():
                cost = torch.where(unknown.view(-1, 1), mil_loss(whole, label, self.pool, mask), cost)
            if strokes is not None and strokes.any():
                cost = cost + self.stroke_weight * stroke_loss(p, strokes, seen)
        total = cost.sum(dim=1)
        return total.mean() if self.reduction == "mean" else total
