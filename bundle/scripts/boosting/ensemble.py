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

"""The network that answers by a boosted ensemble of trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.utils import convert_to_dst_type
from scipy.special import expit

from scripts.boosting.patch_features import PatchFeatures
from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError, first_line

if TYPE_CHECKING:
    from lightgbm import Booster


__all__ = ["MILBoostNet", "import_lightgbm"]


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
        self.smallest_size = self.features.patch_size
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
            lightgbm = import_lightgbm()
            text = _unpacked(self.ensemble, self.features.patch_size)
            _check_trees(text, len(self.features.names))
            try:
                booster = lightgbm.Booster(model_str=text)
                names = booster.feature_name()
            except Exception as error:  # LightGBM raises nearly anything here
                raise InputError(f"LightGBM can't read the network's ensemble ({first_line(error)}).") from error
            if names != self.features.names:
                raise InputError("the network's ensemble was trained on other patch features; train again.")
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


def import_lightgbm() -> ModuleType:
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
