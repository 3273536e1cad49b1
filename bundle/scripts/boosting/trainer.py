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
MIL-Boosting: a boosted ensemble of trees that tells patches apart, learned from labels of whole images.

MILBoost (Viola, Platt & Zhang, NIPS 2006) with the generalized mean over the patches of an image, as Xu et al. (Medical
Image Analysis 2014, doi:10.1016/j.media.2014.01.010) have it. Patch j of image i has the probability
p_ij = sigmoid(h_ij) of its score, the image P_i = (1/N sum_j p_ij^r)^(1/r), and the loss is the cross-entropy of the
images. Each round adds a tree (of LightGBM) to h, along the loss's derivatives by the scores. Left out is what Xu et
al. add: their clusters of several kinds of cancer, and the context of neighbouring patches.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from numbers import Integral, Real
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import Dataset
from monai.engines.trainer import Trainer
from monai.engines.utils import default_metric_cmp_fn
from monai.utils import convert_to_dst_type
from scipy.special import expit, log_expit
from tqdm import tqdm

from scripts.boosting.patch_features import PatchFeatures
from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.processes import process_count
from scripts.training.trainer import per_image

if TYPE_CHECKING:
    from lightgbm import Booster

__all__ = ["BoostingTrainer", "MILBoostNet", "bag_gradient", "bag_losses"]

MAX_SCORE = 300.0  # beyond, O / (1 - P) would overflow; boosting gets nowhere near
MAX_STEP = 2.0  # of a leaf before it is multiplied by the learning rate: Newton's for a probability of 0.5
MIN_CURVATURE = 1e-3  # curvatures are of order 1 at the start
CHUNK = 2**20  # patches whose derivatives are computed together
logger = logging.getLogger(__name__)


def bag_losses(scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float = 4.0) -> np.ndarray:
    """
    Cross-entropy of each bag: -log P of a positive one, -log(1 - P) of a negative one.

    Everything is taken in the log domain, where neither P nor 1 - P loses its digits. Arguments as `bag_gradient`.

    Returns:
        (B,) float64, finite for every finite score; scores beyond +-300 count as +-300.
    """
    return _losses_and_derivatives(scores, bags, labels, r)[0]


def bag_gradient(
    scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    First and second derivative of the bags' summed loss by each score.

    With the instance's share w_j = p_j^r / sum_k p_k^r of its bag, d log P / d h_j = w_j (1 - p_j), as
    log P = 1/r log(1/N sum_k p_k^r) and d log p_j / d h_j = 1 - p_j. The share itself has
    d w_j / d h_j = r w_j (1 - w_j) (1 - p_j), and 1 - p_j has -p_j (1 - p_j). So the derivatives of -log P are

        g_j = -w_j (1 - p_j)
        H_j = g_j (r (1 - w_j) (1 - p_j) - p_j)

    and those of -log(1 - P), with the odds O = P / (1 - P), which have d O / d log P = O / (1 - P), are

        g_j = O w_j (1 - p_j)
        H_j = g_j (w_j (1 - p_j) / (1 - P) + r (1 - w_j) (1 - p_j) - p_j)

    H can be negative: more of one instance gives it more of the share, too.

    Args:
        scores: (N,) h of all instances, those of a bag next to each other.
        bags: (B + 1,) where each bag begins, and where the last one ends; none is empty.
        labels: (B,) of bool, whether the bag is positive.
        r: sharpness of the generalized mean.

    Returns:
        Gradient and diagonal of the Hessian, (N,) float64 each.
    """
    return _losses_and_derivatives(scores, bags, labels, r)[1:]


class MILBoostNet(MapNetwork):
    """
    The map of a boosted ensemble: the probability of each patch, interpolated between the patches' centres.

    What lies beyond the outermost centres has their probability. The features and the ensemble are computed on the CPU,
    wherever the network is. An ensemble of no trees says 0.5. There are no parameters: what is learned is LightGBM's
    text of the ensemble, the bytes of which are the state dict's ``ensemble``, with a last line for their integrity.

    Args:
        patch_size, stride: see `PatchFeatures`. An ensemble is for patches of one size, and for any stride.
        mean, std: of the three channels, normalisation of the network's input to undo.
        method: see `MapNetwork`.
    """

    def __init__(
        self,
        patch_size: int = 64,
        stride: int = 4,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        method: str = "",
    ) -> None:
        super().__init__(["map"], method)
        self.features = PatchFeatures(patch_size, stride)
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.register_buffer("ensemble", torch.zeros(0, dtype=torch.uint8))
        self._booster: Booster | None = None
        self._grown = False  # whether the booster is newer than its text

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        Args:
            image: (B, 3, H, W), normalised by `mean` and `std`.

        Returns:
            (B, 1, H, W) float32 in 0..1.

        Raises:
            InputError: when the image is smaller than a patch, or there is no LightGBM.
        """
        maps = [self._map(one) for one in image]
        # of the image's type, as the map of any network is: transforms are undone only for a MetaTensor
        return convert_to_dst_type(torch.from_numpy(np.stack(maps)[:, None]), image)[0]

    def patch_features(self, image: torch.Tensor) -> np.ndarray:
        """Features (rows, columns, features) of a normalised image (3, H, W), as `PatchFeatures` has them."""
        picture = torch.as_tensor(image).detach().to("cpu", torch.float32) * self.std + self.mean
        return self.features(np.asarray(picture.clamp(0, 1)))

    def adopt(self, booster: Booster) -> None:
        """Answer by this ensemble from now on, and by the trees that it may yet get."""
        self._booster = booster
        self._grown = True

    def receptive_fields(self) -> dict[str, tuple[int, int]]:
        return {"map": (self.features.patch_size, self.features.stride)}

    def _map(self, image: torch.Tensor) -> np.ndarray:
        """Map (H, W) float32 of an image (3, H, W)."""
        size = tuple(image.shape[1:])
        grid = tuple(map(len, self.features.grid(*size)))
        booster = self._live_booster()
        if booster is None:
            return np.full(size, 0.5, dtype=np.float32)
        patches = self.patch_features(image).reshape(-1, len(self.features.names))
        scores = booster.predict(patches, raw_score=True, num_threads=torch.get_num_threads())
        return self._interpolate(expit(scores.reshape(grid)), size).astype(np.float32)

    def _interpolate(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """From the patches' centres (rows, columns) to pixels (H, W), bilinearly."""
        for axis, (count, length) in enumerate(zip(values.shape, size, strict=True)):
            position = (np.arange(length) - (self.features.patch_size - 1) / 2) / self.features.stride
            position = position.clip(0, count - 1)
            low = position.astype(int)
            fraction = np.expand_dims(position - low, 1 - axis)
            high = np.minimum(low + 1, count - 1)
            values = values.take(low, axis) * (1 - fraction) + values.take(high, axis) * fraction
        return values

    def _live_booster(self) -> Booster | None:
        if self._booster is None and len(self.ensemble):
            lightgbm = _lightgbm()
            text = _unpacked(self.ensemble, self.features.patch_size)
            _check_trees(text, len(self.features.names))
            try:
                booster = lightgbm.Booster(model_str=text)
                names = booster.feature_name()
            except Exception as error:  # LightGBM raises nearly anything here
                raise InputError(f"LightGBM can't read the network's ensemble ({first_line(error)}).") from error
            if names != self.features.names:
                raise InputError("the network's ensemble is for other features of the patches; train it again.")
            self._booster = booster
        return self._booster

    def _write_ensemble(self) -> None:
        if self._grown:
            text = self._booster.model_to_string(num_iteration=-1)
            self.ensemble = _packed(text, self.features.patch_size).to(self.ensemble.device)
            self._grown = False

    def _save_to_state_dict(self, *args: Any) -> None:
        self._write_ensemble()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Raises InputError when the ensemble is damaged, or for patches of another size."""
        found = state_dict.get(prefix + "ensemble")
        if found is not None:
            if len(found):
                _unpacked(found, self.features.patch_size)
            self.ensemble = self.ensemble.new_zeros(found.shape)
            self._booster, self._grown = None, False
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a pickle, has of the network: the text instead of the live ensemble."""
        self._write_ensemble()
        return self.__dict__ | {"_booster": None}


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
    in ``state.mean_loss``. A second `run` adds to the trees of the first one.

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
        train_handlers, key_train_metric, metric_cmp_fn: see `monai.engines.SupervisedTrainer`.

    Raises:
        InputError: for a setting out of its range, in many processes, or when there is no LightGBM; and by `run`, when
            an image is smaller than a patch, or has no patch that counts.
    """

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
        key_train_metric: dict[str, Metric] | None = None,
        metric_cmp_fn: Callable = default_metric_cmp_fn,
    ) -> None:
        for name, value in (("r", r), ("learning_rate", learning_rate)):
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0, got {value!r}.")
        for name, value, least in (("num_leaves", num_leaves, 2), ("min_data_in_leaf", min_data_in_leaf, 1)):
            if not _is_count(value, least):
                raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if negative_patches != "all" and not _is_count(negative_patches, 1):
            raise InputError(f"negative_patches must be 'all' or a whole number above 0, got {negative_patches!r}.")
        if process_count() > 1:
            raise InputError("MIL-Boosting trains in one process, on all of its cores; leave the multi_gpu config out.")
        _lightgbm()
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=range(1),
            key_metric=key_train_metric,
            metric_cmp_fn=metric_cmp_fn,
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
        lightgbm = _lightgbm()
        lightgbm.Sequence.register(PatchRows)
        kept, labels = self._choose_patches()
        self.labels = np.array(labels)
        self.bags = np.cumsum([0, *map(len, kept)])
        with tqdm(total=2 * len(kept), desc="features", unit="image") as progress:
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
            losses, gradient, hessian = _losses_and_derivatives(
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

    def __init__(self, network: MILBoostNet, dataset: Dataset, progress: tqdm) -> None:
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


def _losses_and_derivatives(
    scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`bag_losses` and `bag_gradient`, which have most of their work in common."""
    starts, sizes = bags[:-1], np.diff(bags)
    if bags[0] != 0 or bags[-1] != len(scores) or len(labels) != len(sizes) or (sizes < 1).any():
        raise ValueError(
            f"expected bags from 0 to {len(scores)}, none of them empty, and a label for each; "
            f"got {len(labels)} labels, and bags at {bags}"
        )

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sizes)

    scores = np.clip(scores.astype(np.float64), -MAX_SCORE, MAX_SCORE)
    log_p, not_p = log_expit(scores), expit(-scores)
    # p^r in units of the bag's largest, and less 1, which keeps the digits of a bag in which all are close to 1
    peak = np.maximum.reduceat(log_p, starts)
    exponent = r * (log_p - spread(peak))
    bag_log_p = peak + np.log1p(np.add.reduceat(np.expm1(exponent), starts) / sizes) / r
    bag_log_not_p = _log1mexp(bag_log_p)
    share = np.exp(exponent)
    share /= spread(np.add.reduceat(share, starts))

    labels = np.asarray(labels, dtype=bool)
    slope = share * not_p
    gradient = slope * spread(np.where(labels, -1.0, np.exp(bag_log_p - bag_log_not_p)))
    odds_bend = slope * spread(np.where(labels, 0.0, np.exp(-bag_log_not_p)))
    hessian = gradient * (odds_bend + r * (1.0 - share) * not_p - np.exp(log_p))
    return -np.where(labels, bag_log_p, bag_log_not_p), gradient, hessian


def _log1mexp(x: np.ndarray) -> np.ndarray:
    """log(1 - exp(x)) for x < 0, as `scripts.losses.pooling.log1mexp`."""
    near = x > -math.log(2.0)
    return np.where(near, np.log(-np.expm1(x)), np.log1p(-np.exp(np.where(near, -1.0, x))))


def _chunks(bags: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of consecutive bags that have at most `CHUNK` instances together, or more by themselves."""
    chunks, first = [], 0
    for last in range(1, len(bags)):
        if last == len(bags) - 1 or bags[last + 1] - bags[first] > CHUNK:
            chunks.append((first, last))
            first = last
    return chunks


def _lightgbm() -> ModuleType:
    """Raises InputError when LightGBM is not installed, or can't be loaded."""
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise InputError(
            f"MIL-Boosting needs LightGBM, which can't be imported ({first_line(error)}); install it by "
            "'pip install lightgbm', and on Debian its OpenMP library by 'apt-get install libgomp1'."
        ) from error
    return lightgbm


def _packed(text: str, patch_size: int) -> torch.Tensor:
    """LightGBM's text, which has no checksum and says nothing of patches, as bytes with a line that does."""
    content = f"{text.rstrip()}\npatch_size:{patch_size}\n".encode()
    content += f"sha256:{sha256(content).hexdigest()}\n".encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unpacked(packed: torch.Tensor, patch_size: int) -> str:
    """LightGBM's text; raises InputError when it is damaged, or for patches of another size."""
    content = packed.cpu().numpy().tobytes()
    content, _, checksum = content.rpartition(b"sha256:")
    if checksum.strip() != sha256(content).hexdigest().encode():
        raise InputError("the ensemble in it is damaged; name another checkpoint, or train again.")
    text, _, found = content.decode().rpartition("patch_size:")
    if int(found) != patch_size:
        raise InputError(
            f"it was trained with patches of {int(found)} pixels, the settings have {patch_size}; set patch_size "
            f"to {int(found)}, or name another checkpoint."
        )
    return text


def _check_trees(text: str, features: int) -> None:
    """Raises InputError unless the indices in LightGBM's text are in range: LightGBM follows any, out of its memory."""
    for number, block in enumerate(text.split("\nTree=")[1:]):
        fields = dict(line.split("=", 1) for line in block.split("\n\n")[0].splitlines() if "=" in line)
        try:
            if not _is_sound(fields, features):
                raise ValueError("an index is out of range")
        except (KeyError, ValueError) as error:
            raise InputError(
                f"tree {number} of the network's ensemble is damaged; name another checkpoint, or train again."
            ) from error


def _is_sound(tree: Mapping[str, str], features: int) -> bool:
    leaves, splits = int(tree["num_leaves"]), int(tree["num_leaves"]) - 1
    if leaves < 1 or int(tree["num_cat"]) != 0 or len(tree["leaf_value"].split()) != leaves:
        return False
    if splits == 0:
        return True
    used, left, right = (
        [int(n) for n in tree[name].split()] for name in ("split_feature", "left_child", "right_child")
    )
    return (
        len(used) == len(left) == len(right) == len(tree["threshold"].split()) == splits
        and len(tree["decision_type"].split()) == splits
        and all(0 <= feature < features for feature in used)
        # below 0 a leaf; each leaf, and each split but the first, hangs once, below a split before it
        and sorted(left + right) == [n for n in range(-leaves, splits) if n != 0]
        and all(not 0 <= child <= parent for side in (left, right) for parent, child in enumerate(side))
    )


def _name(image: torch.Tensor, index: int) -> str:
    """How to call an image in a message."""
    file = getattr(image, "meta", {}).get("filename_or_obj")
    return f"image {index} of the training set" if file is None else f"'{file}'"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least
