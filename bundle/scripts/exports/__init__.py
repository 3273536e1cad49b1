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

"""A trained network as TorchScript or ONNX, or as a folder for QuPath's WSInfer or the programs of bioimage.io."""

from scripts.exports.exporter import Exporter
from scripts.exports.network_file import NetworkFile

__all__ = ["Exporter", "NetworkFile"]
