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

"""Slices of volumes as images, the right way up, and images back to volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils.enums import MetaKeys

from scripts.runtime.errors import InputError, first_line
from scripts.volumes.reading import Volume, read_volume, volume_name

__all__ = ["LoadSlice", "LoadSliced", "cut_axis", "from_slices", "positive_voxels", "to_slices", "try_read"]

NOTHING = 16  # pixels of a side of what stands for a slice that can't be read
VOLUMES_IN_MEMORY = 4  # decoded, beside the slices that a data set caches


def positive_voxels(labels: np.ndarray, positive_labels: str | Sequence[int]) -> np.ndarray:
    """Boolean: which voxels of a label volume are positive; ``"all"`` takes every value but 0."""
    return labels != 0 if positive_labels == "all" else np.isin(labels, list(positive_labels))


def cut_axis(shape: Sequence[int], axis: int) -> int:
    """Across which axis a volume is cut: a single image, of whatever orientation, is one slice."""
    single = [a for a, size in enumerate(shape) if size == 1]
    return single[0] if len(single) == 1 else axis


def try_read(what: str, path: object) -> tuple[Volume | None, str]:
    """A volume and "", or None and why it can't be read; `what` it is for the user."""
    if not isinstance(path, str) or not os.path.exists(path):  # unlike Path's it takes any text
        return None, f"there is no such file: {what} '{path}'"
    try:
        return read_volume(path), ""
    except Exception as error:  # a decoder may raise anything on a damaged file
        return None, f"{what} '{path}' {_reason(error)}"


def _reason(error: Exception) -> str:
    """What our own check says, or that the file can't be read and why."""
    return (
        str(error)
        if type(error) is ValueError and str(error).startswith(("has ", "is ", "can't "))
        else f"can't be read ({first_line(error)})"
    )


def to_slices(array: np.ndarray, axis: int) -> np.ndarray:
    """(X, Y, Z), as `Volume` has it, to the pictures (slices, W, H) that `LoadSlice` gives."""
    return np.moveaxis(array, axis, 0)[:, ::-1, ::-1]


def from_slices(slices: np.ndarray, axis: int) -> np.ndarray:
    """The inverse of `to_slices`."""
    return np.moveaxis(slices[:, ::-1, ::-1], 0, axis)


class LoadSlice(Transform):
    """
    A slice of a volume, with its neighbours, as an image.

    Args:
        axis: along which slices are taken.
        neighbours: slices on either side that are channels too; at the ends of the volume the last one is repeated.
        intensity: from the volume's values to 0..1, applied to the volume as a whole.
    """

    def __init__(self, axis: int = 2, neighbours: int = 0, intensity: Callable | None = None) -> None:
        if not isinstance(neighbours, int) or isinstance(neighbours, bool) or neighbours < 0:
            raise InputError(f"neighbours must be a whole number, 0 or more; got {neighbours!r}.")
        self.axis = axis
        self.neighbours = neighbours
        self.intensity = intensity
        self.scaled_volume = lru_cache(VOLUMES_IN_MEMORY)(self._scaled_volume)  # its slices come one after another

    def __call__(self, path: str, index: int) -> MetaTensor:
        """
        Returns:
            (C, W, H) float32 as MONAI orders pictures, the right way up for a radiologist: the patient's right, or
            front, on the left; front, or head, at the top. C is 3 equal channels without neighbours, else
            2 x neighbours + 1.

        Raises:
            InputError: when the volume can't be read or scaled.
        """
        volume, problem = self.scaled_volume(path)
        if problem:
            raise InputError(problem)
        offsets = range(-self.neighbours, self.neighbours + 1) if self.neighbours else (0, 0, 0)
        chosen = np.clip([index + offset for offset in offsets], 0, volume.shape[0] - 1)
        return self._picture(volume[chosen], path, index)

    def nothing(self, path: str, index: int, problem: str) -> MetaTensor:
        """In the place of a slice that can't be read, black; with ``problem`` in its metadata."""
        channels = 2 * self.neighbours + 1 if self.neighbours else 3
        image = self._picture(np.zeros((channels, NOTHING, NOTHING), np.float32), path, index)
        image.meta["problem"] = problem
        return image

    def _scaled_volume(self, path: str) -> tuple[np.ndarray | None, str]:
        """(slices, W, H) float32; or why there is none, so that it is not tried again for each slice."""
        volume, problem = try_read("the volume", path)
        if volume is None:
            return None, problem
        array = volume.array
        try:
            array = array if self.intensity is None else np.asarray(self.intensity(array[None]))[0]
            if not np.isfinite(array).all():
                raise ValueError("has values that are not finite once it is scaled")
        except ValueError as error:
            return None, f"the volume '{path}' {_reason(error)}"
        slices = to_slices(array, cut_axis(array.shape, self.axis))
        return np.ascontiguousarray(slices, dtype=np.float32), ""

    def _picture(self, picture: np.ndarray, path: str, index: int) -> MetaTensor:
        meta = self._meta(path, index, picture.shape[1:])
        return MetaTensor(torch.as_tensor(picture), affine=torch.eye(4, dtype=torch.float64), meta=meta)

    def _meta(self, path: str, index: int, shape: Sequence[int]) -> dict:
        return {
            MetaKeys.SPATIAL_SHAPE: np.asarray(shape),
            "filename_or_obj": str(Path(path).parent / f"{volume_name(path)}_slice{index:03}"),
            "volume": path,
            "slice": index,
            "problem": "",
        }


class LoadSliced(MapTransform):
    """
    Dictionary version of `LoadSlice`, for items of `load_slice_datalist` and `list_slices`.

    An item of `list_slices`, which has a ``count``, of a volume that can't be read any more is black, with what is
    wrong as ``problem`` in its metadata: inference goes on with other volumes. Any other item raises an InputError.

    The slice of the mask replaces its path, (1, H, W) float32. The slice alone is kept as ``picture``, (3, H, W) in
    0..1, for whoever draws it.

    Args:
        keys: key of the volume's path.
        slice_key: key of the slice's index.
        mask_key: key of the path of the label volume, which may be absent.
        axis, neighbours, intensity: see `LoadSlice`.
        positive_labels: see `load_slice_datalist`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        slice_key: str = "slice",
        mask_key: str = "mask",
        axis: int = 2,
        neighbours: int = 0,
        intensity: Callable | None = None,
        positive_labels: str | Sequence[int] = "all",
    ) -> None:
        super().__init__(keys)
        self.slice_key = slice_key
        self.mask_key = mask_key
        self.load = LoadSlice(axis, neighbours, intensity)
        self.positive_labels = positive_labels  # for the record of a training
        self.load_mask = LoadSlice(axis, 0, lambda labels: positive_voxels(labels, positive_labels))

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            path, index = d[key], d[self.slice_key]
            try:
                d[key] = self.load(path, index)
            except InputError as error:
                if "count" not in d:
                    raise
                d[key] = self.load.nothing(path, index, str(error))
            middle = d[key].shape[0] // 2
            d["picture"] = d[key][middle : middle + 1].repeat(3, 1, 1).clamp(0, 1)
            if isinstance(d.get(self.mask_key), str):
                d[self.mask_key] = self.load_mask(d[self.mask_key], index)[:1]
        return d
