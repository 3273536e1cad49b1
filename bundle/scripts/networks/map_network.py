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

"""What all networks of the bundle have in common: probability maps, and what they are trained as and at which size."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from scripts.images.limits import MIN_SIZE
from scripts.images.originals import Originals, shrunk_far
from scripts.networks.weights import not_finite, not_floating
from scripts.runtime.errors import InputError
from scripts.runtime.values import image_size, truth_value

__all__ = ["MapNetwork", "check_finite", "trained_as", "trained_as_name", "trained_originals"]

Network = TypeVar("Network", bound="MapNetwork")
METHOD_BYTES = 64
SIZE_BYTES = 16
ORIGINALS_BYTES = 40
logger = logging.getLogger(__name__)


def check_finite(maps: torch.Tensor, name: str) -> torch.Tensor:
    """
    The maps of an image, of any shape, as they are.

    Raises:
        InputError: naming the image when a value is NaN or infinite, which any threshold would take for no cancer.
    """
    if not bool(torch.isfinite(maps).all()):
        raise InputError(
            f"The map of '{name}' has values that are not finite: the network's weights are damaged or too large, or "
            "its numbers overflow with --amp True. Name another checkpoint, or leave amp out."
        )
    return maps


def trained_as_name(method: str, superpixels: bool) -> str:
    """
    What a network is trained as: its method, and whether its instances are superpixels.

    Raises:
        InputError: when `superpixels` is neither True nor False.
    """
    truth_value("superpixels", superpixels)
    return f"{method} with superpixels" if superpixels else method


def trained_as(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, tuple[int, int] | None]:
    """The name of the method, empty if unknown, and the size (H, W) of images in pixels that weights are of."""
    content = _extra_bytes(state_dict)
    size = content[METHOD_BYTES:][:SIZE_BYTES].decode().split()
    return content[:METHOD_BYTES].decode().strip(), (int(size[0]), int(size[1])) if size else None


def trained_originals(state_dict: Mapping[str, torch.Tensor]) -> Originals | None:
    """How large the images in files were that weights are of; None where they don't say."""
    text, _, checksum = _extra_bytes(state_dict)[METHOD_BYTES + SIZE_BYTES :].strip().rpartition(b" ")
    if not text or checksum != _checksum(text):  # as of an average over sites whose images are of different sizes
        return None
    height, width, spread, *mpp = text.split()
    return Originals(int(height), int(width), float(spread), float(mpp[0]) if mpp else None)


def _extra_bytes(state_dict: Mapping[str, torch.Tensor]) -> bytes:
    state = state_dict.get("_extra_state", torch.zeros(0))
    # an average over federated sites has made other numbers of the bytes
    return bytes(state.double().round().to(torch.uint8).tolist())


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


class MapNetwork(nn.Module):
    """
    A network from images to probability maps. A subclass defines `maps`, and `smallest_size` where it needs more than
    4 pixels on a side.

    Args:
        map_names: what `maps` gives, the map that is the network's answer first.
        method: name of what the network is trained as, at most 64 bytes. It goes into the state dict, and a network of
            another method refuses to load it: the weights alone don't tell whether they were learned with an area
            constraint, or for superpixels. An empty name neither refuses nor is refused.

    Raises:
        InputError: when `method` is too long.
    """

    smallest_size = MIN_SIZE

    def __init__(self, map_names: Sequence[str] = ("map",), method: str = "") -> None:
        super().__init__()
        if len(method.encode()) > METHOD_BYTES:
            raise InputError(f"the name of a method has at most {METHOD_BYTES} bytes, got '{method}'.")
        self.map_names = list(map_names)
        self.method = method
        self.spatial_size: tuple[int, int] | None = None
        self._originals: Originals | None = None
        self.tta = False

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        All probability maps.

        Args:
            image: (B, 3, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation.

        Returns:
            (B, M, H, W) float32 in 0..1, in the order of `map_names`.
        """
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to all maps (B, M, H, W) in training, and to the first (B, 1, H, W) in evaluation."""
        if self.training:
            return self.maps(image)
        answer = self.maps(image)[:, :1]
        if self.tta:
            for axes in [[2], [3], [2, 3]]:
                answer = answer + self.maps(image.flip(axes))[:, :1].flip(axes)
            answer = answer / 4
        return answer

    def receptive_fields(self) -> dict[str, tuple[int, int]]:
        """Receptive field and stride in pixels of those maps for which they mean something, under their names."""
        return {}

    def for_size(self: Network, spatial_size: Sequence[int]) -> Network:
        """
        The network itself, which from now on knows the size of its images, and warns when its weights are of another.

        Args:
            spatial_size: height and width in pixels. It goes into the state dict.

        Raises:
            InputError: when they are no two integers, or smaller than the network takes.
        """
        image_size("spatial_size", spatial_size, self.smallest_size)
        self.spatial_size = (int(spatial_size[0]), int(spatial_size[1]))
        return self

    def learns_from(self, originals: Originals | None) -> None:
        """Tell the network how large its training images are in their files. It goes into the state dict."""
        self._originals = originals
        large = shrunk_far(originals, self.spatial_size) if originals and self.spatial_size else None
        if large:
            logger.warning(large)

    def averaging_flips(self: Network, tta: bool) -> Network:
        """
        The network itself, whose answer in evaluation is from now on the mean over the image and its three flips.

        Raises:
            InputError: when `tta` is neither True nor False.
        """
        truth_value("tta", tta)
        self.tta = tta
        return self

    def get_extra_state(self) -> torch.Tensor:
        """The method's name and the sizes as a tensor, since MONAI expects nothing else in a state dict."""
        size = " ".join(map(str, self.spatial_size or ())).encode()
        originals = b""
        if self._originals is not None:
            originals = b"%d %d %.3f" % self._originals[:3]
            originals += b" %.4g" % self._originals.mpp if self._originals.mpp else b""
            originals += b" " + _checksum(originals)
        content = self.method.encode().ljust(METHOD_BYTES) + size.ljust(SIZE_BYTES) + originals.ljust(ORIGINALS_BYTES)
        return torch.tensor(list(content), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Raises InputError when the state dict is of another method."""
        method, size = trained_as({"_extra_state": state})
        self._originals = trained_originals({"_extra_state": state})
        if method and self.method and method != self.method:
            raise InputError(
                f"it was trained as '{method}', but the settings are those of '{self.method}'; give the overlays that "
                "it was trained with, which have the names of its method, or name another checkpoint."
            )
        if size and self.spatial_size and size != self.spatial_size:
            logger.warning(
                f"The weights were trained on images of {size[0]}x{size[1]} pixels, which are {self.spatial_size[0]}x"
                f'{self.spatial_size[1]} here: masks may be poor; give --spatial_size "[{size[0]},{size[1]}]".'
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """
        Raises InputError when a weight is NaN or infinite: such a network may say 'no cancer' of everything; or when it
        is integer or complex.
        """
        name = not_finite(state_dict)
        if name is not None:
            raise InputError(f"its '{name}' has values that are not finite; name another checkpoint, or train again.")
        other = not_floating(state_dict, self.state_dict(prefix=prefix))
        if other is not None:
            raise InputError(f"its {other} is not floating-point; name another checkpoint, or train again.")
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())  # weights from elsewhere have no method
        super()._load_from_state_dict(state_dict, prefix, *args)
