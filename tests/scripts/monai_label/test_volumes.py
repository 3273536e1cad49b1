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
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resized
from PIL import Image
from scripts.monai_label.regions import LoadImageOrRegiond
from scripts.monai_label.volumes import PictureOrSliceInferer, ResizePictured, VolumeToRGB
from scripts.runtime.errors import InputError


def volumes(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def red(image: torch.Tensor) -> torch.Tensor:
    """A network that answers with the first channel of pictures, and takes nothing else."""
    assert image.ndim == 4
    return image[:, :1]


def test_a_picture_goes_through_the_network_alone() -> None:
    image = volumes(2, 3, 20, 30)
    assert torch.equal(PictureOrSliceInferer((8, 8))(image, red), image[:, :1])


def test_maps_are_averaged_over_flips_if_asked_to(lively_network) -> None:
    image, network = volumes(1, 3, 16, 24), deepcopy(lively_network)
    flips = [(), (2,), (3,), (2, 3)]
    with torch.no_grad():
        expected = sum(network(image.flip(flip)).flip(flip) for flip in flips) / 4
        assert not torch.allclose(network(image), expected)
        torch.testing.assert_close(PictureOrSliceInferer((8, 8), tta=True)(image, network)[:, :1], expected[:, :1])


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


def test_resize_leaves_volumes_alone_and_pictures_not() -> None:
    resize = ResizePictured("image", (8, 8))
    volume = {"image": MetaTensor(volumes(3, 20, 30, 4))}
    assert resize(volume)["image"] is volume["image"]
    assert resize.inverse(volume)["image"] is volume["image"]
    small = resize({"image": MetaTensor(volumes(3, 20, 30))})
    assert small["image"].shape == (3, 8, 8)
    assert resize.inverse(small)["image"].shape == (3, 20, 30)


def test_a_volume_is_scaled_between_its_percentiles() -> None:
    """0, 1 ... 100, whose 1st and 99th percentiles are 1 and 99."""
    values = torch.arange(101.0).view(1, 101, 1, 1)
    rgb = VolumeToRGB()(MetaTensor(values, meta={"filename_or_obj": "a.nii"}))
    expected = ((values - 1) / 98).clamp(0, 1).expand(3, 101, 1, 1)
    torch.testing.assert_close(rgb.as_tensor(), expected)
    assert rgb.meta["filename_or_obj"] == "a.nii"


def test_a_mostly_empty_volume_is_not_flat() -> None:
    """999 voxels of 0 and one of 7: both percentiles are 0, and those of the others 7."""
    volume = torch.zeros(1, 10, 10, 10)
    volume[0, 1, 2, 3] = 7
    torch.testing.assert_close(VolumeToRGB()(volume), (volume / 7).repeat(3, 1, 1, 1))


@pytest.mark.parametrize(("value", "reason"), [(3.0, "has the value 3 in all voxels"), (math.nan, "not finite")])
def test_a_volume_with_nothing_to_see_is_refused(value: float, reason: str) -> None:
    with pytest.raises(InputError, match=f"the volume .*{reason}"):
        VolumeToRGB()(torch.full((1, 4, 4, 4), value))


def test_volumes_are_loaded_and_pictures_as_ever(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4)), tmp_path / "a.nii.gz")
    Image.fromarray(np.full((3, 5), 51, np.uint8)).save(tmp_path / "b.png")
    volume, picture = (
        LoadImageOrRegiond("image")({"image": str(tmp_path / f)})["image"] for f in ("a.nii.gz", "b.png")
    )
    assert volume.shape == (3, 4, 3, 2)
    assert (float(volume.min()), float(volume.max())) == (0.0, 1.0)
    torch.testing.assert_close(picture.as_tensor(), torch.full((3, 5, 3), 0.2))
