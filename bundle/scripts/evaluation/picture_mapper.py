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
"""Pictures that are arrays, mapped as inference maps files."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, NormalizeIntensityd

from scripts.evaluation.masks import map_to_mask
from scripts.images.colours import ToRGB, with_metadata_of
from scripts.images.resizing import SmoothResized
from scripts.networks.map_network import MapNetwork
from scripts.networks.pyramid_net import IMAGENET_MEAN, IMAGENET_STD
from scripts.runtime.errors import InputError

__all__ = ["PictureMapper"]


class PictureMapper:
    """
    Maps a picture with a trained network: at the size that the network is for, and back to that of the picture.

    The map is the one that ``NAME_probability.png`` of an inference has, without its rounding to 16 bits.

    Args:
        network: with its weights, told its size by `MapNetwork.for_size`. It is put into evaluation mode.
        min_part: see `map_to_mask`.

    Raises:
        InputError: when the network does not know its size, or `min_part` is no fraction.
    """

    def __init__(self, network: MapNetwork, min_part: float = 0.0) -> None:
        if network.spatial_size is None:
            raise InputError("The network does not know the size of its images; say it with for_size([height, width]).")
        self.network = network.eval()
        self.preprocessing = Compose(
            [
                SmoothResized("image", network.spatial_size),
                NormalizeIntensityd("image", IMAGENET_MEAN, IMAGENET_STD, channel_wise=True),
            ]
        )
        self.postprocessing = Compose(
            map_to_mask(self.preprocessing, min_part=min_part, spatial_size=network.spatial_size)
        )

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """
        Args:
            picture: (H, W), or (H, W, C) with 1 to 4 channels, as `ToRGB` takes them: RGB of 8 bits, or floating-point
                in 0..1, and others.

        Returns:
            (H, W) float32 in 0..1: the probability of each pixel.

        Raises:
            InputError: for what is no picture.
        """
        picture = np.atleast_3d(picture)
        item = self.preprocessing({"image": MetaTensor(ToRGB()(picture.T))})  # MONAI's pictures are (C, W, H)
        device = next(self.network.parameters()).device
        answer = self.network(item["image"].as_tensor()[None].to(device))[0].cpu()
        item["pred"] = with_metadata_of(item["image"], answer)  # Invertd takes no plain tensor
        return self.postprocessing(item)["probability"][0].numpy().T
