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

"""What a run shows while it lasts, and logs at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler, StatsHandler, TensorBoardHandler
from torch.utils.tensorboard import SummaryWriter

from scripts.runtime.bars import Bar
from scripts.runtime.processes import process_rank

__all__ = ["EpochLog", "HyperParameters", "ProgressBar", "handlers_of_process"]

NEGATIVE = "negative_"  # before the name of a loss that is a key metric, of which the largest value is the best


def handlers_of_process(handlers: Sequence) -> list:
    """
    All handlers in the first of many processes; in the others those that don't write or show what is the same in all.

    Args:
        handlers: as a trainer or an evaluator takes them.
    """
    shown = (StatsHandler, TensorBoardHandler, MLFlowHandler, ProgressBar, HyperParameters)
    return [handler for handler in handlers if process_rank() == 0 or not isinstance(handler, shown)]


class EpochLog(StatsHandler):
    """
    A line for each epoch: its metrics, and the best value of the key metric.

    MONAI's handler says the best in a line of its own, with all digits of a float, of training's loss too.

    Args:
        name: of the log.
        best: whether the best value so far is said.
    """

    def __init__(self, name: str, best: bool = False) -> None:
        logging.getLogger(name)  # or MONAI gives it a handler of its own, and another format of the time
        super().__init__(iteration_log=False, epoch_print_logger=self.log, name=name)
        self.logger.propagate = True
        self.best = best

    def log(self, engine: Engine) -> None:
        state = engine.state
        shown = {name: value for name, value in sorted(state.metrics.items()) if not name.startswith(NEGATIVE)}
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        best = ""
        if self.best and state.best_metric_epoch > 0:
            key = state.key_metric_name
            value = -state.best_metric if key.startswith(NEGATIVE) else state.best_metric
            best = f" (best {key.removeprefix(NEGATIVE)} {value:.4f}, epoch {state.best_metric_epoch})"
        self.logger.info(f"epoch {state.epoch}: {metrics}{best}")


class ProgressBar:
    """
    One bar over a whole run, all epochs, with the time left; Ignite's begins anew in each epoch.

    It counts batches; where a `StepSampler` makes several of a step, steps.

    Args:
        desc: what is going on.
        shown: attributes of the engine's state to show beside the bar.
    """

    def __init__(self, desc: str, shown: Sequence[str] = ()) -> None:
        self.desc = desc
        self.shown = list(shown)
        self.steps = 0  # of an epoch
        self.bar: Bar | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.bar.close())

    def start(self, engine: Engine) -> None:
        sampler = getattr(getattr(engine, "data_loader", None), "batch_sampler", None)
        self.steps = getattr(sampler, "steps", engine.state.epoch_length)
        total = engine.state.max_epochs * self.steps
        self.bar = Bar(disable=total == 0, total=total, initial=self._done(engine), desc=self.desc, mininterval=0.5)

    def _done(self, engine: Engine) -> int:
        return engine.state.iteration * self.steps // max(engine.state.epoch_length, 1)  # there may be no images

    def __call__(self, engine: Engine) -> None:
        self.bar.set_postfix({name: getattr(engine.state, name) for name in self.shown}, refresh=False)
        self.bar.update(self._done(engine) - self.bar.n)


class HyperParameters:
    """
    Logs what a training was made with beside the best metrics it reached, for TensorBoard's HPARAMS page.

    Args:
        hyper_parameters: by the names that a user knows; what is no number, text or truth value is logged as its text.
        summary_writer: of the training's log.
        evaluator: of the training's validation, whose best metric is logged if it has run.
    """

    def __init__(self, hyper_parameters: Mapping[str, Any], summary_writer: SummaryWriter, evaluator: Engine) -> None:
        self.hyper_parameters = hyper_parameters
        self.summary_writer = summary_writer
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in self.hyper_parameters.items()
        }
        best = {
            f"best/{run.state.key_metric_name}": run.state.best_metric
            for run in (engine, self.evaluator)
            if run.state.best_metric_epoch > 0
        }
        # the default run name makes a folder of its own, which TensorBoard takes for another run
        self.summary_writer.add_hparams(plain, best, run_name=".")
