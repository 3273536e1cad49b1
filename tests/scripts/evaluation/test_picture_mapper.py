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

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image
from scripts.evaluation.picture_mapper import PictureMapper
from scripts.networks import CDWSNet
from scripts.runtime.errors import InputError


@pytest.mark.parametrize("min_part", [0.0, 0.0007])
def test_the_map_of_an_array_is_that_of_its_file(configs, lively_network, min_part: float, tmp_path: Path) -> None:
    """Not square, so that height and width can't be taken for each other; 16 bits are 1.5e-5 apart, and twice."""
    network = copy.deepcopy(lively_network).for_size([48, 64])
    torch.save(network.state_dict(), tmp_path / "model.pt")
    picture = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    options = {"dataset_dir": str(tmp_path), "prediction_dir": str(tmp_path / "out"), "logging_file": False}
    options["min_part"] = min_part
    run("inferring", config_file=str(configs / "inference.json"), ckpt_path=str(tmp_path / "model.pt"), **options)
    written = np.asarray(Image.open(tmp_path / "out" / "a_probability.png")) / 65535
    probability = PictureMapper(network, min_part)(picture)
    assert probability.shape == (40, 90)
    assert np.ptp(written) > 0.1
    np.testing.assert_allclose(probability, written, atol=5e-5)


@pytest.mark.parametrize("shape", [(40, 32), (40, 32, 1)])
def test_grey_is_rgb_of_equal_channels(lively_network, shape: tuple[int, ...]) -> None:
    mapper = PictureMapper(copy.deepcopy(lively_network).for_size([32, 32]))
    grey = np.random.default_rng(0).random(shape).astype(np.float32)
    colour = np.broadcast_to(grey.reshape(40, 32, 1), (40, 32, 3))
    np.testing.assert_array_equal(mapper(grey), mapper(colour))


def test_what_can_not_be_mapped_is_named(lively_network) -> None:
    with pytest.raises(InputError, match=r"say it with for_size"):
        PictureMapper(CDWSNet())
    with pytest.raises(InputError, match=r"this one goes from 0 to 255"):
        PictureMapper(copy.deepcopy(lively_network).for_size([32, 32]))(np.array([[0.0, 255.0]]))
