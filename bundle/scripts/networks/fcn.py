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

"""FCN: VGG16 made fully convolutional, with skips from shallower stages (Long, Shelhamer & Darrell, CVPR 2015)."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.map_network import MapNetwork
from scripts.networks.vgg import (
    VGG16_STAGES,
    initialise_convolutions,
    load_trunk_weights,
    noise_image,
    pooled_vgg16_trunk,
    stage_ends,
)
from scripts.networks.weights import refuse_not_floating
from scripts.runtime.errors import InputError

__all__ = ["FCN", "BilinearUpsampling", "load_head_weights"]

logger = logging.getLogger(__name__)


class BilinearUpsampling(nn.ConvTranspose2d):
    """
    Transposed convolution that starts as bilinear interpolation of each channel, outside of the map zero.

    Cell i of stride s has its centre at s i + (s - 1) / 2. With a kernel of 2 s and a padding of s / 2 it has it there
    in the upsampled map too, which is s times as large; rows and columns beyond the image are at its end.

    Args:
        channels: of the map.
        factor: the stride s, even.
        groups: 1 for weights between all channels (zeros at first), as published; `channels` for each on its own.

    Raises:
        InputError: when `factor` is not a positive even number.
    """

    def __init__(self, channels: int, factor: int, groups: int = 1) -> None:
        if factor < 2 or factor % 2:
            raise InputError(f"factor must be a positive even number, got {factor}.")
        super().__init__(channels, channels, 2 * factor, factor, padding=factor // 2, groups=groups, bias=False)

    def reset_parameters(self) -> None:
        """Bilinear interpolation: a triangle of half-width s along each axis, from each channel to itself."""
        factor = self.stride[0]
        offset = torch.arange(2 * factor) - (factor - 0.5)
        triangle = 1 - offset.abs() / factor
        columns = self.weight.shape[1]
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            for channel in range(self.in_channels):
                self.weight[channel, channel % columns] = torch.outer(triangle, triangle)


class FCN(MapNetwork):
    """
    FCN-32s, FCN-16s and FCN-8s: scores of stride 32, refined by scores of the stages of stride 16 and 8.

    Layers and their names are those of the published networks. Deviations:

    - The classes are object and background, so there is one score and a sigmoid in place of 21 and a softmax.
    - The published networks pad the image by 100 pixels so that ``fc6`` needs no padding. Here ``fc6`` pads by 3:
      the parameters are the same, an image of 500x500 has 16x16 scores as well
      (500 + 198 -> 349 -> 175 -> 88 -> 44 -> 22, less 6; here 500 -> 250 -> 125 -> 63 -> 32 -> 16), for a fraction of
      the time, and cells cover the image from its first pixel on.
    - FCN-16s and FCN-8s are trained at once, and not each from the one before. What
      is scored is scaled to a standard deviation of 1, on noise: ImageNet's features reach the hundreds.

    The final upsampling is fixed, those before it are learned (section 4.2). Scores start at zero.

    Args:
        stride: of the finest scores: 32, 16 or 8.
        head_channels: of ``fc6`` and ``fc7``. Only with 4096 they take weights of VGG16's classifier.
        num_classes: number of maps, with a sigmoid each. The published networks have 21 scores; the bundle needs one.
        pretrained: ``"imagenet"`` for torchvision's weights, the path of a state dict with the same key names, or
            ``"random"`` for random initialisation. ``classifier.0`` and ``classifier.3`` become ``fc6`` and ``fc7``.
        method: name of what the network is trained as, see `MapNetwork`.

    Raises:
        InputError: when `stride` is another number or `method` is too long.
        InputError: when the pretrained weights can't be had.
    """

    def __init__(
        self,
        stride: int = 8,
        head_channels: int = 4096,
        num_classes: int = 1,
        pretrained: str = "random",
        method: str = "",
    ) -> None:
        if stride not in (8, 16, 32):
            raise InputError(f"stride must be 32, 16 or 8, got {stride}.")
        super().__init__(["map"] if num_classes == 1 else [f"class {c}" for c in range(num_classes)], method)
        self.stride = stride
        self.pretrained = pretrained
        self.features = pooled_vgg16_trunk()
        self.pools = [end + 1 for end in stage_ends(len(VGG16_STAGES))]
        self.fc6 = nn.Conv2d(VGG16_STAGES[4][-1], head_channels, kernel_size=7, padding=3)
        self.fc7 = nn.Conv2d(head_channels, head_channels, kernel_size=1)
        self.dropout = nn.Dropout(0.5)
        initialise_convolutions(self)
        self.score_fr = _score(head_channels, num_classes)
        if stride <= 16:
            self.upscore2 = BilinearUpsampling(num_classes, 2)
            self.score_pool4 = _score(VGG16_STAGES[3][-1], num_classes)
        if stride == 8:
            self.upscore_pool4 = BilinearUpsampling(num_classes, 2)
            self.score_pool3 = _score(VGG16_STAGES[2][-1], num_classes)
        final = BilinearUpsampling(num_classes, stride).requires_grad_(False)
        setattr(self, {32: "upscore", 16: "upscore16", 8: "upscore8"}[stride], final)
        if pretrained != "random":
            load_head_weights(self, load_trunk_weights(self, pretrained), pretrained)
        with torch.no_grad():
            pooled = self._pooled(noise_image())
            scored = (F.relu(self.fc7(F.relu(self._fc6(pooled[4])))), pooled[3], pooled[2])
            self.register_buffer("scales", torch.stack([1 / features.std().clamp(min=1e-6) for features in scored]))

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        The probability of each class.

        Args:
            image: (B, 3, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation. Any H and W.

        Returns:
            (B, num_classes, H, W) float32 in 0..1.
        """
        pooled = self._pooled(image)
        x = self.dropout(F.relu(self._fc6(pooled[4])))  # (B, head_channels, H/32, W/32)
        x = self.dropout(F.relu(self.fc7(x)))
        score = self.score_fr(x * self.scales[0])  # (B, num_classes, H/32, W/32)
        if hasattr(self, "score_pool4"):  # TorchScript drops a branch by hasattr, and not by a number
            skip = self.score_pool4(pooled[3] * self.scales[1])  # (B, num_classes, H/16, W/16)
            score = skip + self.upscore2(score)[:, :, : skip.shape[2], : skip.shape[3]]
        if hasattr(self, "score_pool3"):
            skip = self.score_pool3(pooled[2] * self.scales[2])  # (B, num_classes, H/8, W/8)
            score = skip + self.upscore_pool4(score)[:, :, : skip.shape[2], : skip.shape[3]]
        if hasattr(self, "upscore8"):
            score = self.upscore8(score)
        elif hasattr(self, "upscore16"):
            score = self.upscore16(score)
        else:
            score = self.upscore(score)
        score = score[:, :, : image.shape[2], : image.shape[3]]  # (B, num_classes, H, W)
        # float32 whatever the autocast: half precision can't hold the small probabilities the loss works on
        return torch.sigmoid(score.float())

    def _fc6(self, features: torch.Tensor) -> torch.Tensor:
        """
        The convolution `fc6` as one product of matrices: faster on the CPU, where its weights are 400 MB.

        Channels come last in the columns, as in the memory of a channels-last network, so that no weight is copied.
        """
        columns = F.unfold(features, self.fc6.kernel_size, padding=self.fc6.padding)  # (B, 512 x 49, h w)
        columns = columns.unflatten(1, (features.shape[1], -1)).permute(0, 3, 2, 1).flatten(2)  # (B, h w, 49 x 512)
        weight = self.fc6.weight.permute(0, 2, 3, 1).flatten(1)  # (head_channels, 49 x 512)
        product = F.linear(columns, weight, self.fc6.bias).mT  # (B, head_channels, h w)
        return product.unflatten(2, features.shape[2:])

    def _pooled(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Pooled features of each stage, (B, C, H / s, W / s) for its stride s, from shallow to deep."""
        pooled: list[torch.Tensor] = []
        x = image
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.pools:
                pooled.append(x)
        return pooled


def _score(channels: int, num_classes: int) -> nn.Conv2d:
    """A layer of scores, zero at first as in the published networks, so that all probabilities are one half."""
    score = nn.Conv2d(channels, num_classes, kernel_size=1)
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    return score


def load_head_weights(network: FCN, state: dict[str, torch.Tensor], source: str) -> None:
    """
    Load the first two layers of VGG16's classifier as ``fc6`` and ``fc7``, which compute the same on 7x7 features.

    They stay as they are, and a warning says so, when `state` has no classifier or one of another width.

    Args:
        network: with ``fc6`` and ``fc7``.
        state: a state dict with torchvision's names ``classifier.0.weight`` ...
        source: where it is from, for messages.

    Raises:
        InputError: when only some of the weights are there, or they are misshapen or not floating-point.
    """
    layers = {"classifier.0": network.fc6, "classifier.3": network.fc7}
    keys = [f"{name}.{kind}" for name in layers for kind in ("weight", "bias")]
    missing = [key for key in keys if key not in state]
    if len(missing) == len(keys):
        logger.warning(f"The weights '{source}' have no classifier; fc6 and fc7 are random.")
        return
    if missing:
        raise InputError(f"The weights '{source}' lack '{missing[0]}'; give a state dict of torchvision's VGG16.")
    try:
        width = len(state["classifier.0.bias"])
        if width != network.fc6.out_channels:
            logger.warning(
                f"The classifier of the weights '{source}' has {width} channels and the network's head "
                f"{network.fc6.out_channels}; fc6 and fc7 are random."
            )
            return
        for name, layer in layers.items():
            refuse_not_floating(state, layer.state_dict(prefix=f"{name}."), source)
            weight = state[f"{name}.weight"].reshape(layer.weight.shape)
            layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})
    except (AttributeError, RuntimeError, TypeError) as error:  # no tensors, or of other shapes
        raise InputError(f"The weights '{source}' don't fit VGG16: {str(error).splitlines()[-1].strip()}") from error
