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

"""Which metric chooses the checkpoint, and its value after the run of a real evaluator."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from scripts.losses.cdws import CDWSLoss
from scripts.losses.pixel import PixelLoss
from scripts.losses.pooling import Pooling
from scripts.runtime.errors import InputError
from scripts.training.selection import validation_metrics
from torch import nn

WITH_MASKS = [{"label": 0}, {"label": 1, "mask": "a.png"}, {"label": "b.png"}]
WITHOUT_MASKS = [{"label": 0}, {"label": 1, "mask": "a.png"}, {"label": 1}]
LN2 = math.log(2)


class Scale(nn.Module):
    """An image times a factor stands for the fused map."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.factor


def postprocess(item: dict) -> dict:
    return item | {"probability": item["pred"], "truth": item["mask"], "pred": (item["pred"] >= 0.5).float()}


def image_item(values: Sequence[float], label: int, truth: Sequence[float]) -> dict[str, torch.Tensor]:
    """An image of four pixels; the area of a positive one is .25."""
    target = torch.tensor([float(label), 0.25 if label else math.nan])
    return {"image": torch.tensor([[values]]), "label": target, "mask": torch.tensor([[truth]])}


# With r = 2 they pool to 1/2 (F+ 2/3, mean .45), 1/4 (negative, nothing marked), and 4/5 (all marked: F- 0)
IMAGES = [
    image_item((0.2, 0.4, 0.5, math.sqrt(0.55)), 1, (0, 0, 0, 1)),
    image_item((0.25, 0.25, 0.25, 0.25), 0, (0, 0, 0, 0)),
    image_item((0.8, 0.8, 0.8, 0.8), 0, (0, 0, 0, 0)),
]
EXCESS = (0.2 + 0.4 + 0.5 + math.sqrt(0.55)) / 4 - 0.25
VAL_LOSS = (LN2 + 10 * EXCESS**2 + math.log(4 / 3) + math.log(5)) / 3


def validate(
    items: Sequence[dict],
    select_by: str = "auto",
    factor: float = 1.0,
    batch_size: int = 1,
    loss: nn.Module | None = None,
) -> SupervisedEvaluator:
    loss = loss or CDWSLoss(pool=Pooling(r=2.0), reduction="none")
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(IMAGES), batch_size=batch_size),
        network=Scale(factor),
        postprocessing=postprocess,
        key_val_metric=validation_metrics(items, loss, select_by),
    )
    evaluator.run()
    return evaluator


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_with_masks_the_mean_of_both_f_measures_chooses(batch_size: int) -> None:
    evaluator = validate(WITH_MASKS, batch_size=batch_size)
    expected = {"f_mean": (2 / 3 + 1 / 2) / 2, "f_pos": 2 / 3, "f_neg": 1 / 2, "val_loss": VAL_LOSS}
    assert evaluator.state.metrics == pytest.approx(expected, rel=1e-5)
    assert evaluator.state.key_metric_name == "f_mean"


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_without_masks_the_image_level_loss_chooses_and_no_truth_is_used(batch_size: int) -> None:
    evaluator = validate(WITHOUT_MASKS, batch_size=batch_size)
    assert evaluator.state.metrics == pytest.approx({"negative_val_loss": -VAL_LOSS, "val_loss": VAL_LOSS}, rel=1e-5)
    assert evaluator.state.key_metric_name == "negative_val_loss"


def test_image_labels_can_be_asked_for_although_there_are_masks() -> None:
    evaluator = validate(WITH_MASKS, "image_labels")
    assert evaluator.state.best_metric == pytest.approx(-VAL_LOSS, rel=1e-5)
    assert evaluator.state.metrics["f_pos"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_loss_from_pixel_labels_is_given_the_truth(batch_size: int) -> None:
    metrics = validate(WITH_MASKS, batch_size=batch_size, loss=PixelLoss(reduction="none")).state.metrics
    positive = (math.log(0.8) + math.log(0.6) + math.log(0.5) + math.log(math.sqrt(0.55))) / 4
    assert metrics["val_loss"] == pytest.approx(-(positive + math.log(0.75) + math.log(0.2)) / 3, rel=1e-5)


@pytest.mark.parametrize("select_by", ["auto", "masks"])
def test_masks_are_used_when_there_and_asked_for(select_by: str) -> None:
    assert next(iter(validation_metrics(WITH_MASKS, CDWSLoss(), select_by))) == "f_mean"


def test_a_network_of_nan_is_not_the_best() -> None:
    metrics = validate(WITHOUT_MASKS, factor=math.nan).state.metrics
    assert math.isnan(metrics["negative_val_loss"])


@pytest.mark.parametrize(
    ("items", "select_by", "message"),
    [
        (WITHOUT_MASKS, "auto", "chosen by the image-level validation loss"),
        (WITH_MASKS, "image_labels", "chosen by the image-level validation loss"),
        (WITH_MASKS, "auto", "chosen by f_mean on the masks of 3 validation images"),
    ],
)
def test_says_which_criterion_it_uses(
    items: list[dict], select_by: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="scripts.training.selection"):
        validation_metrics(items, CDWSLoss(), select_by)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("items", "select_by", "message"),
    [
        (WITHOUT_MASKS, "masks", "not every positive validation image has one; use 'image_labels'"),
        (WITH_MASKS, "dice", "must be one of auto, masks, image_labels, got 'dice'"),
    ],
)
def test_refuses_what_cannot_be(items: list[dict], select_by: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validation_metrics(items, CDWSLoss(), select_by)
