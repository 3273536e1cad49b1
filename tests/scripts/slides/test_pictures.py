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

"""Pictures larger than the training images, or of another shape, at the scale of these and in tiles."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.images.resizing import SmoothResized
from scripts.runtime.errors import InputError
from scripts.slides.pictures import AtTrainedScaled, TiledInferer


def resized(height: int, width: int, original, **settings) -> dict:
    """A picture as the network gets it that takes 64 x 64 pixels."""
    size_mode = settings.pop("size_mode", "all")
    resize = SmoothResized("image", [64, 64], size_mode)
    transform = AtTrainedScaled("image", resize, original, **settings)
    picture = torch.rand(3, width, height, generator=torch.Generator().manual_seed(0))  # MONAI's order of axes
    result = transform({"image": MetaTensor(picture, meta={"filename_or_obj": "a.png"})})
    assert transform.inverse({"image": result["image"]})["image"].shape == (3, width, height)
    assert resize.resizer.spatial_size == ([64, 64] if size_mode == "all" else 64)  # for the next one
    return result


@pytest.mark.parametrize(
    ("height", "width", "at"),
    [
        (128, 256, (64, 64)),  # as they are
        (180, 380, (64, 64)),  # within 1.5
        (64, 128, (64, 64)),  # smaller: of another magnification, as far as anybody can tell
        (512, 1024, (256, 256)),  # four times as large: each axis by the training images' own factor
        (128, 1024, (64, 256)),
        (128, 64, (64, 32)),  # upright, but no less than the networks take
    ],
)
def test_a_picture_unlike_the_training_images_keeps_their_scale(height: int, width: int, at: tuple[int, int]) -> None:
    """These had 128 x 256 pixels (height x width)."""
    result = resized(height, width, [128, 256])
    assert result["image"].shape[:0:-1] == at
    assert ("tissue" in result) == (at != (64, 64))


def test_a_wide_spread_of_training_images_makes_more_pictures_like_them() -> None:
    assert resized(250, 500, [128, 256, 1.0])["image"].shape == (3, 125, 125)
    assert resized(250, 500, [128, 256, 1.4])["image"].shape == (3, 64, 64)


def test_where_shapes_are_kept_the_longer_side_alone_counts() -> None:
    assert resized(32, 256, [128, 256], size_mode="longest")["image"].shape == (3, 64, 8)
    assert resized(256, 1024, [128, 256], size_mode="longest")["image"].shape == (3, 256, 64)


def test_without_knowledge_all_is_resized_and_told_once(caplog) -> None:
    transform = AtTrainedScaled("image", SmoothResized("image", [64, 64]))
    with caplog.at_level(logging.WARNING):
        for size in ((80, 64), (256, 64), (64, 512)):
            image = MetaTensor(torch.rand(3, *size), meta={"filename_or_obj": f"in/{size[0]}.png"})
            assert transform({"image": image})["image"].shape == (3, 64, 64)
    (said,) = caplog.messages
    assert "'256.png' of 256x64 pixels" in said
    assert "--original_size" in said


def test_it_can_be_turned_off() -> None:
    assert resized(512, 1024, [128, 256], enabled=False)["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("settings", [{"original_size": 224}, {"original_size": [0, 5]}, {"enabled": "always"}])
def test_other_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match=r"original_size|tiled"):
        AtTrainedScaled("image", SmoothResized("image", [64, 64]), **settings)


def test_tissue_is_where_there_is_colour() -> None:
    picture = np.ones((3, 300, 400), np.float32)
    picture[1, :150] = 0.2
    transform = AtTrainedScaled("image", SmoothResized("image", [64, 64]), [64, 64])
    tissue = np.asarray(transform({"image": MetaTensor(torch.tensor(picture))})["tissue"])
    assert tissue.shape == (1, 300, 400)
    assert tissue[:, :148].all()
    assert not tissue[:, 152:].any()
    grey = transform({"image": MetaTensor(torch.rand(1, 300, 400).repeat(3, 1, 1))})
    assert "tissue" not in grey


def test_the_map_of_tiles_is_that_of_the_whole(lively_network) -> None:
    image = torch.randn(1, 3, 160, 208, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = lively_network(image)
        tiled = TiledInferer([32, 32], tile_size=64)(MetaTensor(image), lively_network)
    assert whole.std() > 0.05
    assert isinstance(tiled, MetaTensor)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert TiledInferer([32, 32], tile_size=64)(image[..., :157], lively_network).shape == (1, 1, 160, 157)


def test_usual_images_go_through_the_network_at_once() -> None:
    seen = []
    TiledInferer([48, 64])(torch.zeros(2, 3, 64, 64), lambda image: seen.append(image.shape))
    assert seen == [(2, 3, 64, 64)]
