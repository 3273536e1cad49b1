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

"""Networks from images to probability maps."""

from __future__ import annotations

from scripts.networks.cdws_net import CDWSNet, WeightedFusion
from scripts.networks.dcan import DCAN
from scripts.networks.fcn import FCN
from scripts.networks.map_network import MapNetwork, check_finite
from scripts.networks.onnx_runtime import in_onnx_runtime
from scripts.networks.pyramid_net import PyramidNet
from scripts.networks.unet import UNet
from scripts.networks.vgg import VGG16_STAGES, load_trunk_weights

__all__ = [
    "DCAN",
    "FCN",
    "VGG16_STAGES",
    "CDWSNet",
    "MapNetwork",
    "PyramidNet",
    "UNet",
    "WeightedFusion",
    "check_finite",
    "in_onnx_runtime",
    "load_trunk_weights",
]
