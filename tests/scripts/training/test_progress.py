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
"""What a training says of its epochs."""

from __future__ import annotations

import logging

import pytest
from ignite.engine import Engine, Events
from scripts.evaluation.evaluator import MapEvaluator
from scripts.training.progress import EpochLog, ProgressBar
from scripts.training.sampling import StepSampler
from torch.nn import Identity
from torch.utils.data import DataLoader


def test_an_epoch_is_a_line_of_short_numbers(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda engine, _: None)
    engine.state.key_metric_name = "f_mean"

    @engine.on(Events.EPOCH_COMPLETED)
    def _measure() -> None:
        engine.state.metrics = {"val_loss": 2 / 3, "f_mean": 0.123456789}
        engine.state.best_metric, engine.state.best_metric_epoch = 0.987654321, 1

    for name, best in (("validation", True), ("training", False)):
        EpochLog(name, best).attach(engine)
        logger = logging.getLogger(name)  # to which other runs of this process may have done anything
        logger.disabled = False
        caplog.set_level(logging.INFO, logger=name)
    with caplog.at_level(logging.INFO):
        engine.run([0], max_epochs=2)
    lines = [record.getMessage() for record in caplog.records if record.name in ("validation", "training")]
    assert lines[:2] == [
        "epoch 1: f_mean 0.1235, val_loss 0.6667 (best f_mean 0.9877, epoch 1)",
        "epoch 1: f_mean 0.1235, val_loss 0.6667",
    ]
    assert len(lines) == 4


def test_the_best_loss_is_named_as_the_loss_beside_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(lambda engine, _: None)
    engine.state.key_metric_name = "negative_val_loss"

    @engine.on(Events.EPOCH_COMPLETED)
    def _measure() -> None:
        engine.state.metrics = {"negative_val_loss": -0.5, "val_loss": 0.5}
        engine.state.best_metric, engine.state.best_metric_epoch = -0.25, 3

    EpochLog("of_loss", True).attach(engine)
    assert not logging.getLogger("of_loss").handlers  # the run's own says it, in one format
    with caplog.at_level(logging.INFO, logger="of_loss"):
        engine.run([0], max_epochs=1)
    assert [record.getMessage() for record in caplog.records if record.name == "of_loss"] == [
        "epoch 1: val_loss 0.5000 (best val_loss 0.2500, epoch 3)"
    ]


def test_the_bar_of_a_training_counts_steps(capsys) -> None:
    """Five images in steps of four, of which two fit into memory at once: three batches, two steps."""
    loader = DataLoader(range(5), batch_sampler=StepSampler(range(5), 4, 2))
    assert len(loader) == 3
    engine = Engine(lambda engine, batch: None)
    engine.data_loader = loader
    ProgressBar("training").attach(engine)
    engine.run(loader, max_epochs=2)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize("images", [0, 2])
def test_there_is_no_bar_of_nothing(images: int, capfd: pytest.CaptureFixture) -> None:
    engine = MapEvaluator(
        device="cpu",
        val_data_loader=DataLoader([{}] * images, collate_fn=list),
        network=Identity(),
        iteration_update=skip,
    )
    ProgressBar("calibration").attach(engine)
    engine.run()
    assert ("calibration" in capfd.readouterr().err) == (images > 0)


def skip(engine: Engine, batch: list) -> list:
    """Does nothing."""
    return []
