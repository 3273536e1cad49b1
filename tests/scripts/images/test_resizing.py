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

"""Pictures get smaller as by MONAI, in less time, and their maps come back to their size."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resize
from scripts.images.resizing import SmoothResize, SmoothResized
from scripts.runtime.errors import InputError


def volumes(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 200, 310), (20, 20)),
        ((1, 200, 310), (7, 150)),
        ((3, 64, 301), (64, 30)),
        ((3, 20, 310), (40, 31)),
        ((4, 33, 35), (32, 34)),
        ((3, 20, 30), (40, 60)),
        ((3, 20, 30), (20, 30)),
    ],
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_picture_gets_smaller_as_by_monai(shape: tuple, size: tuple, mode: str) -> None:
    for image in (volumes(*shape), volumes(*shape[1:], shape[0]).permute(2, 0, 1)):
        expected = Resize(size, mode=mode, anti_aliasing=True)(image)
        resized = SmoothResize(size, mode=mode, anti_aliasing=True)(image)
        torch.testing.assert_close(resized.as_tensor(), expected.as_tensor(), atol=1e-4, rtol=0)


def test_the_mean_of_a_smooth_picture_stays_and_one_pixel_weighs_as_a_gaussian() -> None:
    """By hand: of a factor of 9 the Gaussian's sigma is 4 pixels, and pixel 4 of 0..8 lies in its middle."""
    image = torch.zeros(1, 81, 81)
    image[0, 40, 40] = 1
    small = SmoothResize((9, 9), mode="bilinear", anti_aliasing=True)(image)
    middle = math.erf(0.5 / 4 / math.sqrt(2))  # what lies within half a pixel
    assert float(small[0, 4, 4]) == pytest.approx(middle**2, rel=1e-4)
    assert float(small[0, 4, 5]) == pytest.approx(
        middle * (math.erf(9.5 / 4 / math.sqrt(2)) - math.erf(8.5 / 4 / math.sqrt(2))) / 2, rel=1e-3
    )


@pytest.mark.parametrize(("size", "mode"), [((8, 12), "all"), ((12, 12), "longest"), ((12, 5), "longest")])
def test_maps_of_a_large_picture_come_back_to_its_size(size: tuple, mode: str) -> None:
    resize = SmoothResized("image", size, mode)
    small = resize({"image": MetaTensor(volumes(3, 200, 300))})["image"]
    assert small.shape == (3, 8, 12)
    assert torch.allclose(small.affine.diagonal(), torch.tensor([25.0, 25, 1, 1], dtype=torch.float64))
    assert resize.inverse({"image": small})["image"].shape == (3, 200, 300)


@pytest.mark.parametrize("size", [32, [32], "32,32", [32.0, 32], [0, 4], None])
@pytest.mark.parametrize("mode", ["all", "longest"])
def test_a_size_that_is_none_is_named(size: object, mode: str) -> None:
    with pytest.raises(InputError, match=r"spatial_size must be height and width, two integers of 4 or more, .* got"):
        SmoothResized("image", size, mode)
