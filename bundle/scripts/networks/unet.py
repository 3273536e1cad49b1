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

"""U-Net (Ronneberger, Fischer & Brox, MICCAI 2015) as MONAI has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNet

from scripts.networks.map_network import MapNetwork

__all__ = ["UNet"]


class UNet(MapNetwork):
    """
    MONAI's `BasicUNet` with the channels of the paper, and a sigmoid.

    Deviations from the paper: convolutions are padded, so that the map is as large as the image; the last upsampling
    keeps its 128 channels; there is no dropout; and each convolution is followed by instance normalisation. Batch
    normalisation would not do, since an optimizer step accumulates the images of a batch over micro-batches, and must
    not depend on how they are divided.

    Args:
        features: channels of the five levels and of the last convolutions.
        method: name of what the network is trained as, see `MapNetwork`.

    Raises:
        ValueError: when there are not six `features`, or `method` is too long.
    """

    smallest_size = 32  # the normalisation needs more than one pixel at the deepest level

    def __init__(self, features: Sequence[int] = (64, 128, 256, 512, 1024, 64), method: str = "") -> None:
        super().__init__(method=method)
        self.unet = BasicUNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=1,
            features=features,
            act=("ReLU", {"inplace": True}),
            norm=("instance", {"affine": True}),
            upsample="deconv",
        )

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        The probability map.

        Args:
            image: (B, 3, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation. H and W at least 32:
                the normalisation needs more than one pixel at the deepest level.

        Returns:
            (B, 1, H, W) float32 in 0..1.
        """
        # float32 whatever the autocast: half precision can't hold the small probabilities the loss works on
        return torch.sigmoid(self.unet(image).float())
