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

"""The models that come with the bundle: when one is used, and what it is of. Without PyTorch, which starts slowly."""

from __future__ import annotations

import logging
import shlex
from os import PathLike
from pathlib import Path

from scripts.runtime.command_line import did_you_mean
from scripts.runtime.errors import InputError

__all__ = ["LEARNED_FROM", "included_model", "is_included", "model_of", "require_training"]

LEARNED_FROM = (
    "on H&E-stained colon biopsies of one source. Of other tissue, stains, scanners or magnifications its masks may be "
    "wrong, and nothing warns of it; for research, not for diagnosis"
)
SHOWN = 3  # trainings that are proposed
logger = logging.getLogger(__name__)


def included_model(shipped: str | PathLike, method: str = "") -> Path:
    """The model of a method in the folder of those that come with the bundle; ``model.pt`` serves all other methods."""
    of_method = Path(shipped) / f"{method}.pt"
    return of_method if of_method.is_file() else Path(shipped) / "model.pt"


def is_included(path: str | PathLike, shipped: str | PathLike) -> bool:
    """Whether a checkpoint is in the folder of the models that come with the bundle."""
    return Path(path).resolve().parent == Path(shipped).resolve()


def model_of(
    ckpt_dir: str | PathLike,
    output_dir: str | PathLike,
    shipped: str | PathLike,
    method: str = "",
    is_scored: bool = False,
) -> str:
    """
    The model of a training; one that comes with the bundle where there has been none, which is said in a line.

    Args:
        ckpt_dir: folder of the training's checkpoints, ``output_dir/models`` unless somebody has named another.
        output_dir: of the training.
        shipped: folder of the models that come with the bundle, see `included_model`.
        method: name of the method.
        is_scored: whether a training is meant: the scores of one model must not be taken for those of another. Results
            of new images may be put anywhere, as is usual in MONAI's bundles.

    Returns:
        Path of ``model.pt`` in `ckpt_dir`, even if it isn't there, when the folder has been named, or when a training
        has left something in it: one that was stopped early has no model yet.

    Raises:
        InputError: when a model is scored, and nothing has been trained in `output_dir`.
    """
    folder = Path(ckpt_dir)
    model = str(folder / "model.pt")
    is_named = folder != Path(output_dir) / "models"
    included = included_model(shipped, method)
    if is_named or _has_checkpoint(output_dir) or not included.is_file():
        return model
    if is_scored:
        require_training(output_dir, str(included))
    trained = " or ".join(map(shlex.quote, _trained_beside(output_dir)[:SHOWN]))
    others = f"; for that of a training add --output_dir {trained}" if trained else ""
    logger.warning(
        f"There is no model in '{ckpt_dir}': the one that comes with the bundle is used, '{included}'{others}."
    )
    return str(included)


def require_training(output_dir: str | PathLike, included: str) -> None:
    """
    Refuse a folder in which nothing has been trained: another model's results would be taken for its.

    Args:
        output_dir: of the training that is meant.
        included: what ``ckpt_path`` must be for the model that comes with the bundle.

    Raises:
        InputError: with the folder beside it that is nearest by name and has a model, else with the newest ones.
    """
    folder = Path(output_dir)
    if _has_checkpoint(folder):
        return
    trained = _trained_beside(folder)
    others = f", but in {', '.join(map(repr, trained[:SHOWN]))}" if trained else ""
    near = did_you_mean(str(folder), trained) or others
    raise InputError(
        f"Nothing has been trained in '{folder}'{near}: name the --output_dir of a "
        f"training. For the model that comes with the bundle add --ckpt_path {included}."
    )


def _trained_beside(output_dir: str | PathLike) -> list[str]:
    """The folders beside it that have a model, the newest first."""
    models = Path(output_dir).parent.glob("*/models/model.pt")
    return [str(path.parent.parent) for path in sorted(models, key=lambda path: -path.stat().st_mtime)]


def _has_checkpoint(output_dir: str | PathLike) -> bool:
    return any((Path(output_dir) / "models").glob("*.pt"))
