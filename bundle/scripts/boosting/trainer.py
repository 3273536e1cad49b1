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

"""Training of a boosted ensemble: one tree an epoch, along the derivatives of the bags' loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.engines.trainer import Trainer

from scripts.boosting.bags import losses_and_derivatives
from scripts.boosting.ensemble import MILBoostNet, import_lightgbm
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.processes import process_count
from scripts.runtime.values import positive_number, whole_number
from scripts.training.trainer import epoch_loss, per_image

if TYPE_CHECKING:
    from lightgbm import Booster

__all__ = ["BoostingTrainer"]

MAX_STEP = 2.0  # of a leaf before it is multiplied by the learning rate: Newton's for a probability of 0.5
MIN_CURVATURE = 1e-3  # curvatures are of order 1 at the start
CHUNK = 2**20  # patches whose derivatives are computed together
logger = logging.getLogger(__name__)


class BoostingTrainer(Trainer):
    """
    Trains a `MILBoostNet` by one tree an epoch, which is one iteration over all images.

    The images' features are computed at the start, about twice, and never kept for more than one image: of all patches
    there are LightGBM's bins, one or two bytes a feature, and a few numbers. So the images must be the same whenever
    they are asked for; a random transform has no place here.

    An instance's gradient is of order 1/N in a bag of N, so the trees get it times the number of instances in a bag on
    the average. Of the curvature, which may be negative, they get the absolute value (Dauphin et al. 2014,
    arXiv:1406.2572), at least 0.001; and no leaf steps further than 2 times the learning rate.

    Leaves the losses of the images after the round in ``state.output``, as `AccumulatingTrainer` does, and their mean
    in ``state.mean_loss``; it has the same key metric. A second `run` adds to the trees of the first one.

    Args:
        max_epochs: number of trees.
        device: of the engine's state. The training itself is on the CPU, with as many threads as PyTorch has.
        network: is trained from no trees at all.
        dataset: of items with "image" (3, H, W), normalised as the network has it; "label", positive when its first
            value is above 0.5; and perhaps "valid" (1, H, W): only patches count whose centre (the pixel at half the
            patch's size) has a value above 0.
        r: sharpness of the generalized mean.
        learning_rate: what of each tree is added.
        num_leaves: of a tree.
        min_data_in_leaf: patches that a leaf has in training.
        negative_patches: number of patches that a negative image has at most, drawn at random; or ``"all"``. Their mean
            estimates that over all of them. Positive images keep all of theirs, since only a few may be positive.
        seed: of the drawing, and of LightGBM.
        train_handlers: see `monai.engines.SupervisedTrainer`.

    Raises:
        InputError: for a setting out of its range, in many processes, or when there is no LightGBM; and by `run`, when
            an image is smaller than a patch, or has no patch that counts.
    """

    recorded = ("r", "negative_patches", "seed", "parameters")  # what a result depends on, see `record`

    def __init__(
        self,
        *,
        max_epochs: int,
        device: torch.device | str,
        network: MILBoostNet,
        dataset: Dataset,
        r: float = 4.0,
        learning_rate: float = 0.1,
        num_leaves: int = 8,
        min_data_in_leaf: int = 20,
        negative_patches: int | str = 2000,
        seed: int = 0,
        train_handlers: Sequence | None = None,
    ) -> None:
        whole_number("max_epochs", max_epochs)
        positive_number("r", r)
        positive_number("learning_rate", learning_rate)
        whole_number("num_leaves", num_leaves, 2)
        whole_number("min_data_in_leaf", min_data_in_leaf)
        if negative_patches != "all":
            whole_number("negative_patches", negative_patches, words="'all' or ")
        if process_count() > 1:
            raise InputError("MIL-Boosting trains in one process, using all cores; leave the multi_gpu config out.")
        import_lightgbm()
        metric = epoch_loss()
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=range(1),
            key_metric=metric["key_train_metric"],
            metric_cmp_fn=metric["metric_cmp_fn"],
            handlers=train_handlers,
            decollate=False,
        )
        self.network = network
        self.dataset = dataset
        self.r = float(r)
        self.negative_patches = negative_patches
        self.seed = seed
        self.parameters = {
            "objective": "none",
            "metric": "none",
            "boosting": "gbdt",
            "learning_rate": learning_rate,
            "num_leaves": num_leaves,
            "min_data_in_leaf": min_data_in_leaf,
            "min_sum_hessian_in_leaf": 0.0,
            "max_delta_step": MAX_STEP,
            "feature_pre_filter": False,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": torch.get_num_threads(),
            "seed": seed,
            "verbosity": -1,
        }
        self.booster: Booster | None = None

    def run(self) -> None:
        if self.booster is None:
            self._start()
        super().run()

    def _start(self) -> None:
        """Lay out the bags, bin their features, and set up an ensemble of no trees."""
        lightgbm = import_lightgbm()
        lightgbm.Sequence.register(PatchRows)
        kept, labels = self._choose_patches()
        self.labels = np.array(labels)
        self.bags = np.cumsum([0, *map(len, kept)])
        with Bar(total=2 * len(kept), desc="features", unit="image") as progress:
            features = LastImage(self.network, self.dataset, progress)
            rows = [PatchRows(features, index, patches) for index, patches in enumerate(kept)]
            data = lightgbm.Dataset(
                rows,
                label=np.zeros(self.bags[-1], dtype=np.float32),  # asked for, and used by no custom loss
                feature_name=self.network.features.names,
                params=self.parameters,
            ).construct()
        self.gradient = np.empty(self.bags[-1], dtype=np.float32)
        self.curvature = np.empty(self.bags[-1], dtype=np.float32)
        self.losses = np.empty(len(labels))
        self.booster = lightgbm.Booster(self.parameters, data)
        self.booster.eval_train(self._evaluate)

    def _choose_patches(self) -> tuple[list[np.ndarray], list[bool]]:
        """The patches that each image trains with, as indices into its flattened grid; and whether it is positive."""
        kept, labels = [], []
        for index in range(len(self.dataset)):
            item = self.dataset[index]
            try:
                rows, columns = self.network.features.grid(*item["image"].shape[1:])
            except InputError as error:
                raise InputError(f"{_name(item['image'], index)}: {error}") from error
            if "valid" in item:
                middle = self.network.features.patch_size // 2
                valid = np.asarray(item["valid"])[0][np.ix_(rows + middle, columns + middle)] > 0
                patches = np.flatnonzero(valid).astype(np.int32)
            else:
                patches = np.arange(len(rows) * len(columns), dtype=np.int32)
            if not len(patches):
                raise InputError(
                    f"{_name(item['image'], index)}: no patch has its centre on the image; give a larger "
                    "spatial_size, or a smaller patch_size."
                )
            positive = float(item["label"][0]) > 0.5
            if not positive and self.negative_patches != "all" and len(patches) > self.negative_patches:
                generator = np.random.default_rng([self.seed, index])
                patches = np.sort(generator.choice(patches, self.negative_patches, replace=False))
            kept.append(patches)
            labels.append(positive)
        if not kept:
            raise InputError("there is no image to train with.")
        return kept, labels

    def _evaluate(self, scores: np.ndarray, _: Any) -> tuple[str, float, bool]:
        """The losses of the images, and the derivatives that the next tree follows, from the patches' scores."""
        scale = len(scores) / len(self.labels)
        for first, last in _chunks(self.bags):
            here = slice(self.bags[first], self.bags[last])
            losses, gradient, hessian = losses_and_derivatives(
                scores[here], self.bags[first : last + 1] - self.bags[first], self.labels[first:last], self.r
            )
            self.losses[first:last] = losses
            self.gradient[here] = scale * gradient
            self.curvature[here] = np.maximum(scale * np.abs(hessian), MIN_CURVATURE)
        return "loss", float(self.losses.mean()), False

    def _iteration(self, engine: Engine, batchdata: Any) -> list[dict[str, torch.Tensor]]:
        self.booster.update(fobj=lambda scores, data: (self.gradient, self.curvature))
        self.booster.eval_train(self._evaluate)  # LightGBM has the scores already
        self.network.adopt(self.booster)
        losses = torch.from_numpy(self.losses.copy())
        engine.state.mean_loss = losses.mean().item()
        return per_image(losses)


class LastImage:
    """
    Features of the patches of the images of a data set, kept for the image that was asked for last.

    Args:
        network: computes them.
        dataset: see `BoostingTrainer`.
        progress: gets one step an image.
    """

    def __init__(self, network: MILBoostNet, dataset: Dataset, progress: Bar) -> None:
        self.network = network
        self.dataset = dataset
        self.progress = progress
        self.index = -1
        self.features = np.empty((0, 0))

    def __call__(self, index: int) -> np.ndarray:
        """(patches, features), in double precision as LightGBM's bins ask for."""
        if index != self.index:
            features = self.network.patch_features(self.dataset[index]["image"])
            self.features = features.reshape(-1, features.shape[2]).astype(np.float64)
            self.index = index
            self.progress.update()
        return self.features


class PatchRows:
    """
    Chosen patches of one image as rows of a `lightgbm.Sequence`: row by row for the bins, then all at once.

    Args:
        features: gives those of an image.
        index: of the image.
        patches: which of them, (K,).
    """

    def __init__(self, features: LastImage, index: int, patches: np.ndarray) -> None:
        self.features = features
        self.index = index
        self.patches = patches
        self.batch_size = len(patches)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        return self.features(self.index).take(self.patches[rows], axis=0)  # a view would keep the whole image


def _chunks(bags: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of consecutive bags that have at most `CHUNK` instances together, or more by themselves."""
    chunks, first = [], 0
    for last in range(1, len(bags)):
        if last == len(bags) - 1 or bags[last + 1] - bags[first] > CHUNK:
            chunks.append((first, last))
            first = last
    return chunks


def _name(image: torch.Tensor, index: int) -> str:
    """How to call an image in a message."""
    file = getattr(image, "meta", {}).get("filename_or_obj")
    return f"image {index} of the training set" if file is None else f"'{file}'"
