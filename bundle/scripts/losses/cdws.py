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
The weakly supervised loss of CDWS-MIL (Jia et al. 2017, equations 1 to 12).

Shapes: a probability map is (B, M, H, W), M maps of B images; a weak target is (B, 2), the columns being the label
Y in {0, 1} and the rough area a in 0..1, NaN where it is not known. Everything is computed in float32, autocast or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from scripts.losses.constraints import AreaConstraint, area_loss
from scripts.losses.instances import check_regions, instances_of, paint_superpixels
from scripts.losses.pooling import Pooling, log1mexp
from scripts.losses.strokes import stroke_loss
from scripts.runtime.errors import InputError
from scripts.runtime.values import number, numbers, truth_value

__all__ = ["CDWSLoss", "check_target", "mil_loss"]


def check_target(prediction: torch.Tensor, target: torch.Tensor) -> None:
    """Raises ValueError when the weak target of maps (B, ...) is not (B, 2), label and area."""
    if target.shape != (prediction.shape[0], 2):
        raise ValueError(f"expected a target of shape ({prediction.shape[0]}, 2), got {tuple(target.shape)}.")


def mil_loss(
    probability: torch.Tensor, label: torch.Tensor, pool: Pooling | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy between the pooled probability and the image label, equations (1) and (4).

    Args:
        probability: (B, M, ...) in 0..1, the instances in the trailing axes.
        label: (B,), 0 or 1.
        pool: how the instances make the image's probability; the paper's generalized mean by default.
        mask: (B, ...), which instances count.

    Returns:
        (B, M): -log Y^ for a positive image, -log(1 - Y^) for a negative one; finite for every p in 0..1.

    Raises:
        InputError: for a label that is neither 0 nor 1.

    Examples:
        >>> p = torch.tensor([[[0.5, 0.5]]])
        >>> mil_loss(p, torch.tensor([1.0]))  # log 2
        tensor([[0.6931]])
    """
    wrong = label[(label != 0) & (label != 1)]
    if len(wrong):
        raise InputError(f"a label must be 0 or 1; got {float(wrong[0]):g}.")
    log_positive = (pool or Pooling()).log(probability, mask)
    return -torch.where(label.view(-1, 1) > 0.5, log_positive, log1mexp(log_positive))


class CDWSLoss(nn.Module):
    """
    MIL loss and area constraint of every side output and of the fusion, summed, equations (6), (9), (11) and (12).

    Strokes, which the paper doesn't have, are instances of known label: they cost the `stroke_loss` of each map.

    Args:
        side_area_weights: eta_t of each side; 0 leaves the constraint out.
        fusion_area_weight: eta_fuse; of the only map where a network has but one.
        pool: from instances to the image; the paper's generalized mean by default.
        constraint: cost of an area that disagrees; the paper's one-sided one by default.
        area_constraint: False leaves the constraint out, whatever it is: for methods that know no areas.
        area_weight_scale: factor on all area weights, for constraints that are steeper than the paper's.
        stroke_weight: of the strokes' loss.
        reduction: ``"mean"`` over the images, or ``"none"`` for one value an image. The paper sums over the
            images; the mean makes the loss independent of their number.

    Raises:
        InputError: for an unknown `reduction`, a weight that is no number of 0 or more, or an `area_constraint` that is
            neither True nor False.

    Examples:
        Two images of one map, of which half is positive: one where that is right, and one without cancer.

        >>> maps = torch.tensor([[[[0.9, 0.1]]], [[[0.9, 0.1]]]])
        >>> target = torch.tensor([[1.0, 0.5], [0.0, torch.nan]])
        >>> CDWSLoss([], pool=Pooling("max"), reduction="none")(maps, target)  # -log 0.9, -log 0.1
        tensor([0.1054, 2.3026])
    """

    inputs = ("superpixels", "valid", "strokes")  # of a batch, beside prediction and target

    def __init__(
        self,
        side_area_weights: Sequence[float] = (2.5, 5.0, 10.0),
        fusion_area_weight: float = 10.0,
        pool: Pooling | None = None,
        constraint: AreaConstraint | None = None,
        area_weight_scale: float = 1.0,
        area_constraint: bool = True,
        stroke_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        numbers("side_area_weights", side_area_weights)
        number("fusion_area_weight", fusion_area_weight)
        number("area_weight_scale", area_weight_scale)
        number("stroke_weight", stroke_weight)
        truth_value("area_constraint", area_constraint)
        area_weights = tuple(weight * area_weight_scale for weight in (fusion_area_weight, *side_area_weights))
        if reduction not in ("mean", "none"):
            raise InputError(f"reduction must be 'mean' or 'none', got '{reduction}'.")
        self.names = ("fusion", *(f"side{t}" for t in range(1, len(area_weights))))
        self.pool = pool or Pooling()
        self.constraint = (constraint or AreaConstraint()) if area_constraint else AreaConstraint("none")
        self.stroke_weight = stroke_weight
        self.reduction = reduction
        self.area_weights = area_weights  # not a buffer: a config doesn't move the loss to the network's device

    def set_epoch(self, epoch: int) -> None:
        """Tell the constraint, if it has a schedule, which epoch begins, from 1."""
        if hasattr(self.constraint, "set_epoch"):
            self.constraint.set_epoch(epoch)

    def check_maps(self, count: int) -> None:
        """Raises InputError unless there is an area weight for each of so many maps, or one map alone."""
        if count not in (1, len(self.names)):
            raise InputError(
                f"expected 1 or {len(self.names)} maps ({', '.join(self.names)}), got {count}; "
                "each side output needs one of side_area_weights."
            )

    def terms(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        superpixels: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        strokes: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        The loss in its parts, image by image.

        Args:
            prediction: (B, 1 + T, H, W) in 0..1, fused first, as the network gives it in training; or one map
                alone, (B, 1, H, W), as in evaluation: then the sides' terms are left out.
            target: (B, 2), label and area.
            superpixels: (B, 1, H, W), integer labels from 0, to take superpixels as instances instead of pixels.
            valid: (B, 1, H, W), above 0 where a pixel belongs to the image, where images have been padded.
            strokes: (B, 1, H, W), see `scripts.images.strokes`, or None.

        Returns:
            ``mil`` and ``area``, and ``strokes`` where there are some, each (B, M), with its weights applied.

        Raises:
            InputError: when the shapes don't fit each other or the number of weights.
        """
        maps = prediction.shape[1]
        self.check_maps(maps)
        check_target(prediction, target)
        label, area = target[:, 0], target[:, 1]
        area_weights = torch.tensor(self.area_weights[:maps], device=prediction.device)
        with torch.autocast(prediction.device.type, enabled=False):
            instances, mask = instances_of(prediction, superpixels, valid)
            terms = {
                "mil": mil_loss(instances, label, self.pool, mask),
                "area": area_loss(instances, label, area, self.constraint, mask) * area_weights,
            }
            check_regions(prediction, strokes=strokes)
            if strokes is not None and strokes.any():
                p = prediction if superpixels is None else paint_superpixels(prediction, superpixels, valid)
                terms["strokes"] = self.stroke_weight * stroke_loss(p, strokes)
            return terms

    def forward(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        superpixels: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
        strokes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Total loss: a scalar for reduction ``"mean"``, (B,) for ``"none"``. Arguments and errors as `terms`."""
        terms = self.terms(prediction, target, superpixels, valid, strokes)
        total = torch.stack(list(terms.values())).sum(dim=(0, 2))
        return total.mean() if self.reduction == "mean" else total
