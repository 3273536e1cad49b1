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

"""Training that goes on where it was stopped, to the same weights bit for bit."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from monai.transforms import Randomizable, Transform
from torch.utils.tensorboard import SummaryWriter

from scripts.networks.weights import load_tensors
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import report_written
from scripts.training.checkpoints import is_finite, write_checkpoint
from scripts.training.progress import HyperParameters
from scripts.training.record import record

__all__ = ["TrainingState", "fit"]

logger = logging.getLogger(__name__)
RESUME = (True, False, "changed")
FILES = ("state_0.pt", "state_1.pt")  # of even and of odd epochs: while one is written, the other is whole
FORMAT = 2
OF_DATA = " (how many images, and a checksum of their names, labels and areas in dataset.json)"
# what follows from something else
SET_BY = {"loss.warm_up": " (by --warm_up, or a part of all epochs)"}
SET_BY |= {"data.training": OF_DATA, "data.validation": OF_DATA}
FOLDED = "network.folded"  # how the network is computed, which no result depends on: recorded by version 1.0.4
PRETRAINED = "network.pretrained"  # recorded since version 1.0.6, of the paper's network before


def fit(
    trainer: Trainer,
    ckpt_dir: str | PathLike,
    evaluator: Evaluator,
    summary_writer: SummaryWriter,
    resume: bool | str = True,
) -> None:
    """
    Run a trainer, from the last complete epoch of an earlier run with the same `record` if there is one.

    The record is logged with the best metrics; at the end it is said what has been written where.

    Args:
        trainer: with ``network`` and ``optimizer``. One without an optimizer trains anew every time.
        ckpt_dir: folder of the checkpoints, and of the state's two files.
        evaluator: of the validation, whose best metric so far is kept.
        summary_writer: of TensorBoard; what a stopped run logged after its last complete epoch is hidden. It is closed.
        resume: True: go on; with another record an earlier training is replaced if it is complete, and else an error;
            ``"changed"``: go on with other settings; False: train anew, and leave no way back to the earlier run.

    Raises:
        InputError: for another value of `resume`, when the record of an unfinished training is another, when no file
            of the state can be read, when it is of another network or another version, and when the weights are no
            longer finite.
    """
    if resume not in RESUME:
        raise InputError(f"resume must be True, False or 'changed'; got {resume!r}.")
    settings = record(trainer, evaluator)
    HyperParameters(settings, summary_writer, evaluator).attach(trainer)
    if getattr(trainer, "optimizer", None) is not None:
        TrainingState(trainer, ckpt_dir, evaluator, settings, resume, summary_writer).attach(trainer)
    trainer.run()
    summary_writer.close()
    best, last = Path(ckpt_dir) / "model.pt", Path(ckpt_dir) / "last.pt"
    report_written({"best checkpoint": best, "last checkpoint": last, "TensorBoard": summary_writer.log_dir})


class TrainingState:
    """
    Handler that keeps the state of a training at the end of each epoch, and puts it back at the start of a run.

    Network, optimiser, gradient scaler, teacher, step of the schedule, epoch, best metrics, and the random states of
    Python, NumPy, PyTorch and the training data's transforms. Attach it after all other handlers, so that nothing
    follows that it would miss.

    Args:
        settings: the `record` of the training.
        trainer, ckpt_dir, evaluator, resume, summary_writer: see `fit`.
    """

    def __init__(
        self,
        trainer: Trainer,
        ckpt_dir: str | PathLike,
        evaluator: Evaluator,
        settings: Mapping[str, Any],
        resume: bool | str = True,
        summary_writer: SummaryWriter | None = None,
    ) -> None:
        self.trainer = trainer
        self.folder = Path(ckpt_dir)
        self.evaluator = evaluator
        self.settings = dict(settings)
        self.resume = resume
        self.summary_writer = summary_writer

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def start(self, engine: Engine) -> None:
        """Put the newest state back; or, of a new training, remove what an earlier one left."""
        found = self._newest() if self.resume else None
        changes = _changes(json.loads(found["settings"]), self.settings) if found else []
        if changes and self.resume != "changed":
            if not found["complete"]:
                raise InputError(
                    f"The training in '{self.folder}' was started with other settings: {'; '.join(changes)}. Give the "
                    "same ones to continue, --resume changed to continue with the new ones, --resume False to train "
                    "anew (which replaces the checkpoints), or another folder."
                )
            logger.warning(f"A complete training in '{self.folder}' is replaced: {'; '.join(changes)}.")
            found = None
        if found is None:
            if idist.get_rank() == 0:
                for name in FILES:
                    (self.folder / name).unlink(missing_ok=True)
        else:
            self._restore(found, new_options=bool(changes))
        if self.summary_writer is not None:
            _purge(self.summary_writer, engine.state.epoch + 1)

    def save(self, engine: Engine) -> None:
        """Keep the state after an epoch. Raises InputError when weights are not finite: the last state stays."""
        if not is_finite(self.trainer.network):
            raise InputError(
                f"The weights are not finite after epoch {engine.state.epoch}: the training has diverged. The state of "
                "the epoch before is kept; train anew with a smaller --learning_rate and --resume False."
            )
        content = {
            "format": FORMAT,
            "epoch": engine.state.epoch,
            "complete": engine.state.epoch >= engine.state.max_epochs,
            "settings": json.dumps(self.settings),
            "model": self.trainer.network.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            **{name: part.state_dict() for name, part in self._parts().items()},
            "scheduled": getattr(getattr(self.trainer, "lr_scheduler", None), "last_epoch", 0),
            "best": [_best(run) for run in (self.trainer, self.evaluator)],
            "random": _random_states(self._transforms()),
        }
        write_checkpoint(content, self.folder / FILES[engine.state.epoch % 2])

    def _newest(self) -> dict | None:
        """The newest state that can be read; None if there is none at all."""
        states, damaged = [], []
        for path in (self.folder / name for name in FILES):
            if not path.exists():
                continue
            try:
                content = load_tensors(path)
                if content["format"] != FORMAT:
                    raise ValueError("of another version of the bundle")
                states.append(content)
            except Exception as error:  # the bytes may be anything
                damaged.append(f"'{path}' ({first_line(error)})")
        if damaged and not states:
            raise InputError(
                f"The training can't be resumed: {' and '.join(damaged)} can't be read; train anew with --resume False."
            )
        newest = max(states, key=lambda content: content["epoch"], default=None)
        if damaged:
            logger.warning(f"{damaged[0]} can't be read; continuing from epoch {newest['epoch']} instead.")
        return newest

    def _restore(self, content: dict, new_options: bool) -> None:
        trainer, epoch = self.trainer, content["epoch"]
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
        try:
            trainer.network.load_state_dict(content["model"])
            trainer.optimizer.load_state_dict(content["optimizer"])
        except InputError as error:
            raise InputError(f"The training in '{self.folder}' can't be resumed: {error}") from error
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"The training in '{self.folder}' is of another network ({first_line(error)}); "
                "train anew with --resume False, or in another folder."
            ) from error
        if new_options:
            for group, options in zip(trainer.optimizer.param_groups, chosen, strict=True):
                group.update(options)
        for name, part in self._parts().items():
            if content.get(name) is not None:
                part.load_state_dict(content[name])
        if getattr(trainer, "lr_scheduler", None) is not None:  # of its state its step alone: it may be longer now
            trainer.lr_scheduler.last_epoch = content.get("scheduled", 0)
        trainer.state.epoch = epoch
        trainer.state.iteration = epoch * trainer.state.epoch_length
        for run, (metric, best_epoch) in zip((trainer, self.evaluator), content["best"], strict=True):
            run.state.best_metric, run.state.best_metric_epoch = metric, best_epoch
        if idist.get_rank() == 0:  # other processes have drawn other numbers
            _set_random_states(content["random"], self._transforms())
        if epoch >= trainer.state.max_epochs:
            logger.warning(
                f"The training in '{self.folder}' is complete ({epoch} epochs) and is not repeated. "
                f"--max_epochs {2 * epoch} --resume changed trains longer, --resume False anew."
            )
        else:
            logger.warning(f"Continuing after epoch {epoch} of {trainer.state.max_epochs}, from '{self.folder}'.")

    def _parts(self) -> dict[str, Any]:
        """What a trainer may have beside network and optimiser, and has."""
        parts = {name: getattr(self.trainer, name, None) for name in ("scaler", "teacher")}
        return {name: part for name, part in parts.items() if part is not None}

    def _transforms(self) -> list[Randomizable]:
        return list(_randomizables(getattr(self.trainer.data_loader.dataset, "transform", None), set()))


def _changes(before: dict, now: dict) -> list[str]:
    before = {PRETRAINED: now.get(PRETRAINED), **before}  # where it was not recorded, it is taken as the same
    names = [name for name in {**before, **now} if before.get(name) != now.get(name) and not name.startswith(FOLDED)]
    return [f"{name} was {before.get(name)!r}, is {now.get(name)!r}{SET_BY.get(name, '')}" for name in names]


def _best(run: Engine) -> tuple[float, int]:
    return float(run.state.best_metric), int(run.state.best_metric_epoch)


def _purge(writer: SummaryWriter, epoch: int) -> None:
    """Let TensorBoard hide what an earlier run has logged from this epoch on."""
    writer.close()  # the next file that it opens begins with the mark
    writer.purge_step = epoch


def _randomizables(thing: Any, seen: set[int]) -> Iterator[Randomizable]:
    """Random transforms in a transform, itself included, in an order that is the same in every run."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Randomizable):
        yield thing
    if isinstance(thing, (list, tuple)):
        parts: Any = thing
    elif isinstance(thing, Mapping):
        parts = thing.values()
    else:
        parts = vars(thing).values() if isinstance(thing, (Transform, Randomizable)) else ()
    for part in parts:
        yield from _randomizables(part, seen)


def _random_states(transforms: Sequence[Randomizable]) -> dict[str, Any]:
    """As lists and tensors, which load without pickle."""
    return {
        "python": random.getstate(),
        "numpy": _listed(np.random.get_state()),  # noqa: NPY002  the state that other libraries draw from
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "transforms": [_listed(transform.R.get_state()) for transform in transforms],
    }


def _set_random_states(states: dict[str, Any], transforms: Sequence[Randomizable]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if len(states["transforms"]) == len(transforms):
        for transform, state in zip(transforms, states["transforms"], strict=True):
            transform.R.set_state(state)


def _listed(state: tuple) -> tuple:
    kind, keys, *rest = state
    return (kind, keys.tolist(), *rest)
