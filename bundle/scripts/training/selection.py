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

"""Choosing the best checkpoint, with validation masks or without any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy

import torch
from ignite.metrics import Metric
from monai.handlers import IgniteMetricHandler, from_engine

from scripts.data.datalist import has_masks
from scripts.metrics import RegionFMeasure
from scripts.runtime.errors import InputError
from scripts.training.trainer import MeanLoss

__all__ = ["validation_metrics"]

CRITERIA = ("auto", "masks", "image_labels")
logger = logging.getLogger(__name__)


def validation_metrics(items: Sequence[dict], loss: torch.nn.Module, select_by: str = "auto") -> dict[str, Metric]:
    """
    The metrics of a validation under their names; MONAI takes the first, which chooses the best checkpoint, as the key.

    Args:
        items: validation datalist.
        loss: of the network's answer, one value an image: `CDWSLoss` or `PixelLoss` with reduction ``"none"``.
        select_by: ``"masks"``: the mean of F+ and F-; ``"image_labels"``: the image-level validation loss, which
            needs nothing but the weak labels; ``"auto"``: masks where all validation images have them.

    Raises:
        InputError: when masks are asked for and missing, or `select_by` is unknown.
    """
    if select_by not in CRITERIA:
        raise InputError(f"select_by must be one of {', '.join(CRITERIA)}, got '{select_by}'.")
    masks = has_masks(items)
    if select_by == "masks" and not masks:
        raise InputError("select_by is 'masks', but not every positive validation image has one; use 'image_labels'.")
    regions = {name: _region_metric(name) for name in ("f_pos", "f_neg")} if masks else {}
    if select_by == "image_labels" or not masks:
        logger.info("The best checkpoint is chosen by the image-level validation loss (no masks used).")
        key = {"negative_val_loss": _mean_loss(loss) * -1.0}
    else:
        logger.info(f"The best checkpoint is chosen by f_mean on the masks of {len(items)} validation images.")
        key = {"f_mean": _region_metric("f_known")}  # MONAI Label's few images may be of one class
    return {**key, "val_loss": _mean_loss(loss), **regions}


# What a loss takes beside prediction and target, and where an evaluator's output has it. (Padding is gone by then.)
OUTPUT_KEYS = {"superpixels": "instances", "truth": "truth"}


def _loss_of(loss: torch.nn.Module, output: list[dict]) -> torch.Tensor:
    """Losses (B,) of an evaluator's output for one batch."""
    keys = {name: OUTPUT_KEYS[name] for name in loss.inputs if OUTPUT_KEYS.get(name) in output[0]}
    prediction, target = (torch.stack([item[key] for item in output]) for key in ("probability", "label"))
    return loss(prediction, target, **{n: torch.stack([item[key] for item in output]) for n, key in keys.items()})


def _mean_loss(loss: torch.nn.Module) -> Metric:
    # A copy stays as it is when a schedule sharpens the training's constraint: losses are compared over epochs.
    # MONAI's LossMetric leaves NaN out, so that a network of NaN would have a loss of 0, the best of all.
    fixed = deepcopy(loss)
    return MeanLoss(lambda output: _loss_of(fixed, output))


def _region_metric(statistic: str) -> Metric:
    return IgniteMetricHandler(
        metric_fn=RegionFMeasure(statistic), output_transform=from_engine(["pred", "truth"]), save_details=False
    )
