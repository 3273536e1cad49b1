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

"""A volume is segmented as its slices would be, each of them a picture."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resize, Resized
from scripts.images.colours import ToRGBd
from scripts.monai_label.volumes import PictureOrSliceInferer, ResizePictured, SmoothResize


def volumes(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def red(image: torch.Tensor) -> torch.Tensor:
    """A network that answers with the first channel of pictures, and takes nothing else."""
    assert image.ndim == 4
    return image[:, :1]


def test_a_picture_goes_through_the_network_alone() -> None:
    image = volumes(2, 3, 20, 30)
    assert torch.equal(PictureOrSliceInferer((8, 8))(image, red), image[:, :1])


@pytest.mark.parametrize("size", [(8, 12), (40, 60)])
def test_slices_are_resized_like_pictures_and_back(size: tuple[int, int]) -> None:
    image = volumes(2, 3, 20, 30, 4)
    maps = PictureOrSliceInferer(size)(MetaTensor(image), red)
    assert maps.shape == (2, 1, 20, 30, 4)
    resized = Resized("image", size, mode="bilinear", anti_aliasing=True)
    for b, k in ((0, 0), (1, 3)):
        picture = resized({"image": MetaTensor(image[b, ..., k])})
        expected = resized.inverse(picture)["image"][:1]
        torch.testing.assert_close(maps[b, ..., k], expected.as_tensor())


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


@pytest.mark.parametrize(("size", "mode"), [((8, 12), "all"), (12, "longest")])
def test_maps_of_a_large_picture_come_back_to_its_size(size: tuple | int, mode: str) -> None:
    resize = ResizePictured("image", size, mode, mode="bilinear", anti_aliasing=True)
    small = resize({"image": MetaTensor(volumes(3, 200, 300))})["image"]
    assert small.shape == (3, 8, 12)
    assert torch.allclose(small.affine.diagonal(), torch.tensor([25.0, 25, 1, 1], dtype=torch.float64))
    assert resize.inverse({"image": small})["image"].shape == (3, 200, 300)


def test_resize_leaves_volumes_alone_and_pictures_not() -> None:
    resize = ResizePictured("image", (8, 8), mode="bilinear")
    volume = {"image": MetaTensor(volumes(3, 20, 30, 4))}
    assert resize(volume)["image"] is volume["image"]
    assert resize.inverse(volume)["image"] is volume["image"]
    small = resize({"image": MetaTensor(volumes(3, 20, 30))})
    assert small["image"].shape == (3, 8, 8)
    assert resize.inverse(small)["image"].shape == (3, 20, 30)


def test_a_volumes_values_are_scaled_by_its_percentiles() -> None:
    """Of 0 .. 100 the 1st and 99th percentiles are 1 and 99; the unit does not matter."""
    values = torch.arange(101.0).reshape(1, 101, 1, 1)
    scaled = ToRGBd("image")({"image": values * 7 - 1000})["image"]
    assert scaled.shape == (3, 101, 1, 1)
    expected = ((values - 1) / 98).clamp(0, 1).repeat(3, 1, 1, 1)
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)
