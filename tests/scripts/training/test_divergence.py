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

"""Losses that are no numbers stop a training by name; masks all empty or all full are called a collapse."""

from __future__ import annotations

import logging

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents
from scripts.runtime.errors import InputError
from scripts.training.divergence import CollapseWarning, FiniteLoss


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_images_of_a_loss_that_is_no_number_are_named(bad: float) -> None:
    def step(engine: Engine, batch: dict) -> dict:
        engine.state.output = [{"image_loss": torch.tensor(loss)} for loss in (1.0, bad, 0.5)]
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        pytest.fail("a step is made with it")

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    FiniteLoss().attach(engine)
    images = MetaTensor(torch.zeros(3, 1, 2, 2), meta={"filename_or_obj": ["a.png", "b.png", "c.png"]})
    with pytest.raises(InputError, match=r"in epoch 1, for 'b.png'\."):
        engine.run([{"image": images}])


def validate(engine_and_warning: tuple[Engine, CollapseWarning], areas: list[tuple[int, float]]) -> None:
    engine, _ = engine_and_warning
    masks = {0.0: [0, 0, 0, 0], 0.25: [1, 0, 0, 0], 1.0: [1, 1, 1, 1]}
    engine.run(
        [
            {"label": torch.tensor([label, float("nan")]), "pred": torch.tensor(masks[area]).reshape(1, 2, 2)}
            for label, area in areas
        ]
    )


@pytest.fixture
def evaluation() -> tuple[Engine, CollapseWarning]:
    engine, warning = Engine(lambda _, item: [item]), CollapseWarning(patience=3)
    warning.attach(engine)
    return engine, warning


@pytest.mark.parametrize(
    ("areas", "word"),
    [
        ([(1, 0.0), (1, 0.0), (0, 0.25)], "empty"),
        ([(1, 1.0), (0, 1.0)], "full"),
    ],
)
def test_a_collapse_is_called_so_after_some_validations_in_a_row(evaluation, caplog, areas, word) -> None:
    with caplog.at_level(logging.WARNING):
        validate(evaluation, areas)
        validate(evaluation, areas)
        validate(evaluation, [(1, 0.25), (0, 0.0)])  # recovers
        validate(evaluation, areas)
        validate(evaluation, areas)
        assert not caplog.messages
        validate(evaluation, areas)
    (message,) = caplog.messages
    assert f"have been {word} for 3 validations" in message
    assert "--area_weight_scale" in message


@pytest.mark.parametrize("areas", [[(1, 0.0), (1, 0.25), (0, 0.0)], [(1, 1.0), (0, 0.25)], [(0, 0.0)]])
def test_healthy_masks_give_no_warning(evaluation, caplog, areas) -> None:
    for _ in range(6):
        validate(evaluation, areas)
    assert not caplog.messages
