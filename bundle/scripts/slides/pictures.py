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
Pictures unlike those that a network has learned from: larger by far, or of another shape.

Squeezed to the network's size they would show everything smaller, or distorted. They are brought to the scale of the
training images instead, and mapped in tiles, as slides are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import InvertibleTransform, MapTransform

from scripts.images.originals import Originals, deviation
from scripts.images.resizing import SmoothResized
from scripts.images.tissue import OVERVIEW, find_tissue
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.processes import process_rank
from scripts.runtime.values import is_number
from scripts.slides.tiling import TileGrid, exact_margin

__all__ = ["AtTrainedScaled", "TiledInferer"]

LIKE = 1.5  # times as large, or as long, as nearly all training images: up to here a picture counts as one of them
LARGE = 4  # times as large as the network's input: doubtful where nothing is known
SMALLEST = 32  # pixels of a side; less some networks don't take
logger = logging.getLogger(__name__)


class AtTrainedScaled(MapTransform, InvertibleTransform):
    """
    Resizes pictures as in training; those unlike the training images to the scale that these had.

    A picture is unlike them when it is more than 1.5 times as large, or as long for its width, as nearly all of them,
    see `Originals`. Each of its axes is then resized by the factor that the median training image was resized by. That
    is right where a pixel of its file shows as much as one of theirs. Of these pictures `tissue` has the pixels, of the
    file's size, that are no glass, over which a slide's probability is pooled; all where none is found by its colour.

    Where `original_size` is None every picture is resized as in training; the first one whose shape or size makes that
    doubtful is told of.

    Args:
        keys: of the picture, (3, W, H).
        resize: as in training.
        original_size: height and width of the median training image in its file, and the spread, if known.
        enabled: ``"auto"``, or False: every picture is resized as in training.
        tissue: key of the tissue.

    Raises:
        InputError: when `original_size` or `enabled` is none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        resize: MapTransform,
        original_size: Sequence[float] | None = None,
        enabled: str | bool = "auto",
        tissue: str = "tissue",
    ) -> None:
        super().__init__(keys)
        if enabled not in ("auto", False):
            raise InputError(f"tiled must be 'auto' or False; got {enabled!r}.")
        self.resize = resize
        self.usual = None if original_size is None else _originals(original_size)
        self.enabled = enabled == "auto" and isinstance(resize, SmoothResized)
        self.tissue = tissue
        self._has_told = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        (key,) = self.keys
        width, height = d[key].shape[1:3]
        if not self.enabled:
            return self.resize(d)
        if self.usual is None:
            self._tell_of_unknown(d[key], width, height)
            return self.resize(d)
        resizer = self.resize.resizer
        keeps_shape = resizer.size_mode == "longest"
        longest = max(self.usual.height, self.usual.width)
        usual = self.usual._replace(height=longest, width=longest) if keeps_shape else self.usual
        shown = (max(height, width),) * 2 if keeps_shape else (height, width)
        if deviation(*shown, usual) <= LIKE * usual.spread:
            return self.resize(d)
        to = [resizer.spatial_size] * 2 if keeps_shape else resizer.spatial_size
        size = [max(SMALLEST, round(n * t / u)) for n, t, u in zip((width, height), to, usual[1::-1], strict=True)]
        self._tell(d[key], width, height, size)
        if (tissue := _tissue(d[key])) is not None:
            d[self.tissue] = tissue
        fixed = resizer.spatial_size, resizer.size_mode
        resizer.spatial_size, resizer.size_mode = size, "all"
        try:
            return self.resize(d)
        finally:
            resizer.spatial_size, resizer.size_mode = fixed

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.resize.inverse(data)

    def _tell(self, image: torch.Tensor, width: int, height: int, size: Sequence[int]) -> None:
        if not self._has_told:
            logger.info(
                f"{_name(image)} has {width}x{height} pixels, the training images had {self.usual.width}x"
                f"{self.usual.height}: it is mapped in tiles, as {size[0]}x{size[1]} pixels, and so are others like it."
            )
        self._has_told = True

    def _tell_of_unknown(self, image: torch.Tensor, width: int, height: int) -> None:
        usual = Originals(*np.resize(self.resize.resizer.spatial_size, 2).tolist())
        larger, shape = max(height / usual.height, width / usual.width), height * usual.width / width / usual.height
        if not self._has_told and (larger > LARGE or not 1 / LIKE <= shape <= LIKE):
            logger.warning(
                f"The checkpoint doesn't say how large its training images were: all images are taken to be like them, "
                f"and resized to {usual.width}x{usual.height}, also {_name(image)} of {width}x{height} pixels. Give "
                '--original_size "[HEIGHT,WIDTH]" to have those unlike them mapped in tiles.'
            )
            self._has_told = True


def _originals(size: Sequence[float]) -> Originals:
    is_pair = isinstance(size, Sequence) and not isinstance(size, str) and len(size) in (2, 3)
    if not is_pair or not all(is_number(n) and n >= 1 for n in size):
        raise InputError(f"original_size must be the height and width of training images in pixels; got {size!r}.")
    return Originals(*size)


def _name(image: torch.Tensor) -> str:
    return f"'{Path(str(getattr(image, 'meta', {}).get('filename_or_obj', 'an image'))).name}'"


def _tissue(image: torch.Tensor) -> torch.Tensor | None:
    """Where a picture (3, W, H) is no glass, (1, W, H) bool; None where there is no tissue by its colour."""
    width, height = image.shape[1:]
    factor = min(1.0, OVERVIEW / max(width, height))
    columns, rows = (((np.arange(max(1, int(n * factor))) + 0.5) / factor).astype(int) for n in (width, height))
    overview = np.asarray(image)[:, columns[:, None], rows].transpose(2, 1, 0)
    found = torch.from_numpy(find_tissue(overview).T[None])
    return F.interpolate(found[None].float(), (width, height), mode="nearest")[0] > 0 if found.any() else None


class TiledInferer(Inferer):
    """
    `SimpleInferer` that cuts images larger than the network's usual ones into tiles, see `TileGrid`.

    Args:
        spatial_size: of the usual ones; those as large at most go through the network as they are.
        tile_size: side of the tiles.
    """

    def __init__(self, spatial_size: Sequence[int], tile_size: int = 512) -> None:
        super().__init__()
        self.whole = max(spatial_size)
        self.tile_size = tile_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """(B, C, W, H) to (B, M, W, H)."""
        if max(inputs.shape[2:]) <= self.whole:
            return network(inputs, *args, **kwargs)
        margin, stride, _ = exact_margin(network)
        height, width = inputs.shape[2:]  # as tensors call their axes
        grid = TileGrid(width, height, self.tile_size, margin, stride)
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        padded = F.pad(image, (0, grid.padded_width - width, 0, grid.padded_height - height), mode="replicate")
        rows: dict[int, list[torch.Tensor]] = {}
        bar = {"desc": "tiles of this picture", "total": grid.rows * grid.columns, "disable": process_rank() > 0}
        for tile in Bar(grid, leave=False, delay=2, **bar):  # if they take longer than a moment
            outer = grid.with_margin(tile)
            read = network(padded[..., outer.top : outer.bottom, outer.left : outer.right], *args, **kwargs)
            rows.setdefault(tile.row, []).append(grid.without_margin(tile, read))
        maps = torch.cat([torch.cat(row, dim=-1) for row in rows.values()], dim=-2)
        return MetaTensor(maps, meta=inputs.meta) if isinstance(inputs, MetaTensor) else maps
