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


"""Slides and networks whose answers are known, for the tests of whole slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scripts.networks import CDWSNet


def _write_slide(path: Path, picture: np.ndarray, mpp: float | None, factors: Sequence[int] = (1,)) -> Path:
    """Pyramidal TIFF (lossless) of a picture (H, W, 3); the levels are means over squares of these sides."""
    with tifffile.TiffWriter(path) as writer:
        for factor in factors:
            height, width = (n // factor for n in picture.shape[:2])
            squares = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
            level = np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
            resolution = {} if mpp is None else {"resolution": (10_000 / mpp / factor,) * 2, "resolutionunit": 3}
            options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
            writer.write(level, subfiletype=int(factor > 1), **options, **resolution)
    return path


def _tissue_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """White, with coloured noise in all but a border of a tenth."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 255, np.uint8)
    y, x = height // 10, width // 10
    noise = rng.integers(0, 200, (height - 2 * y, width - 2 * x, 3))
    noise[..., 1] //= 4  # less green than red and blue, as haematoxylin and eosin
    picture[y : height - y, x : width - x] = noise
    return picture


@pytest.fixture(scope="session")
def write_slide():
    return _write_slide


@pytest.fixture(scope="session")
def tissue_picture():
    return _tissue_picture


@pytest.fixture(scope="session")
def lively_network() -> CDWSNet:
    """Random weights, with side outputs that vary over most of 0..1."""
    torch.manual_seed(0)
    network = CDWSNet().eval()
    with torch.no_grad():
        for side in network.sides:
            torch.nn.init.normal_(side.weight, std=0.5)
    return network
