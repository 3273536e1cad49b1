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

"""Settings that can't be used are named, each where it is used."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.data.datalist import load_datalist
from scripts.data.targets import WeakTarget
from scripts.evaluation.evaluator import MapEvaluator
from scripts.evaluation.report import ScoreCollector
from scripts.losses.cdws import CDWSLoss
from scripts.losses.constraints import AreaConstraint
from scripts.losses.pooling import Pooling
from scripts.networks import DCAN, CDWSNet, UNet
from scripts.networks.map_network import trained_as_name
from scripts.runtime.errors import InputError
from scripts.runtime.values import fraction, number, numbers, positive_number, rgb, truth_value, whole_number
from scripts.slides.picture_outlines import PictureOutlines
from scripts.training.optimizer import hundredth, parameter_groups, sgd
from scripts.training.sampling import SeededDataset
from scripts.training.trainer import AccumulatingTrainer
from scripts.training.validation import Validation

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", None, True])
def test_counts_that_are_none(value) -> None:
    whole_number("max_epochs", 1)
    with pytest.raises(InputError, match=f"max_epochs must be an integer of 1 or more; got {value!r}"):
        whole_number("max_epochs", value)


@pytest.mark.parametrize("value", [-0.1, "abc", None, NAN, INF, False])
def test_numbers_that_are_none(value) -> None:
    number("learning_rate", 0)
    with pytest.raises(InputError, match=f"learning_rate must be a number, 0 or more; got {value!r}"):
        number("learning_rate", value)


@pytest.mark.parametrize("value", [0, -1.0, "abc", None, INF, NAN, True])
def test_numbers_that_must_be_above_0(value) -> None:
    positive_number("r", 1e-9)
    with pytest.raises(InputError, match=f"r must be a number above 0; got {value!r}"):
        positive_number("r", value)


@pytest.mark.parametrize("value", ["false", "True", 0, 1, None])
def test_what_is_neither_true_nor_false(value) -> None:
    truth_value("amp", False)
    with pytest.raises(InputError, match=f"amp must be True or False; got {value!r}"):
        truth_value("amp", value)


@pytest.mark.parametrize("value", [50, -0.1, 1.01, "0.5", None, NAN, True])
def test_fractions_that_are_none(value) -> None:
    fraction("threshold", 0)
    fraction("threshold", 1)
    with pytest.raises(InputError, match=f"threshold must be a fraction from 0 to 1; got {value!r}") as caught:
        fraction("threshold", value)
    assert str(caught.value).endswith(" (did you mean 0.5?).") == (value == 50)


@pytest.mark.parametrize("value", [1.0, "1,2", [1, "2"], [-1.0], [NAN], None])
def test_lists_that_are_none_of_numbers(value) -> None:
    numbers("side_area_weights", [0, 2.5])
    with pytest.raises(InputError, match="side_area_weights must be a list of numbers, each 0 or more; got"):
        numbers("side_area_weights", value)


@pytest.mark.parametrize("value", ["red", [1, 2], [0, 0, 256], [-1, 0, 0], [0.5, 0, 0], None])
def test_colours_that_are_none(value) -> None:
    rgb("class_colour", [0, 128, 255])
    with pytest.raises(InputError, match="class_colour must be red, green and blue from 0 to 255"):
        rgb("class_colour", value)


LINEAR = torch.nn.Linear(1, 1)
USED = {
    "learning_rate": lambda: parameter_groups(LINEAR, "fast"),
    "learning_rate ": lambda: hundredth("abc"),
    "side_learning_rate": lambda: parameter_groups(LINEAR, 0.1, side_learning_rate=-1),
    "encoder_learning_rate": lambda: parameter_groups(LINEAR, 0.1, encoder_learning_rate=NAN),
    "weight_decay": lambda: parameter_groups(LINEAR, 0.1, weight_decay="none"),
    "momentum": lambda: sgd(parameter_groups(LINEAR, 0.1), 90),
    "max_epochs": lambda: AccumulatingTrainer(train_data_loader=None, max_epochs=0),
    "amp": lambda: AccumulatingTrainer(train_data_loader=None, max_epochs=1, amp="false"),
    "amp ": lambda: MapEvaluator(device="cpu", amp=1),
    "val_interval": lambda: Validation(None, 0),
    "threshold": lambda: ScoreCollector(50),
    "cache_rate": lambda: SeededDataset(data=[], cache_rate="x"),
    "class_colour": lambda: PictureOutlines(".", colour="red"),
    "r": lambda: Pooling(r="abc"),
    "top_fraction": lambda: Pooling(top_fraction=0),
    "area_step": lambda: WeakTarget(0),
    "area_step ": lambda: WeakTarget(1.5),
    "barrier#start": lambda: AreaConstraint(sharpness=0),
    "barrier#growth": lambda: AreaConstraint(growth="x"),
    "barrier#maximum": lambda: AreaConstraint(maximum=INF),
    "side_area_weights": lambda: CDWSLoss(side_area_weights="heavy"),
    "fusion_area_weight": lambda: CDWSLoss(fusion_area_weight=-1),
    "area_weight_scale": lambda: CDWSLoss(area_weight_scale=None),
    "area_constraint": lambda: CDWSLoss(area_constraint="false"),
    "stages": lambda: CDWSNet(6),
    "stages ": lambda: CDWSNet(True),
    "fusion_weights": lambda: CDWSNet(2, fusion_weights=[0.2, 0.3, 0.5]),
    "deep_supervision": lambda: CDWSNet(deep_supervision="no"),
    "superpixels": lambda: trained_as_name("cdws", "false"),
    "pixel_labels": lambda: load_datalist("nowhere", pixel_labels="false"),
    "allow_outside": lambda: load_datalist("nowhere", allow_outside="false"),
}


@pytest.mark.parametrize("name", USED)
def test_each_setting_is_named_by_what_uses_it(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name.strip()} must be .*; got "):
        USED[name]()


@pytest.mark.parametrize("size", [[3, 4], 32, [32], [32, 32, 32], [32.0, 32], ["32", 32], None, [True, 32], "32,32"])
def test_sizes_that_are_none_are_named(size) -> None:
    with pytest.raises(
        InputError, match=r"spatial_size must be height and width, two integers of 4 or more, as .* got"
    ):
        DCAN().for_size(size)


@pytest.mark.parametrize(
    ("network", "least"),
    [(CDWSNet(), 4), (CDWSNet(5, [0.2] * 5), 16), (UNet([4, 4, 4, 4, 4, 4]), 32)],  # each stage but the last halves it
    ids=["three stages", "five stages", "U-Net"],
)
def test_a_network_knows_its_smallest_image(network, least: int) -> None:
    assert network.for_size([least, least + 1]).spatial_size == (least, least + 1)
    with pytest.raises(InputError, match=f"spatial_size must be height and width, two integers of {least} or more"):
        network.for_size([least, least - 1])
