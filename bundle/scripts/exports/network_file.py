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

"""The run that exports a file: the bare network as TorchScript or ONNX."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.data.torchscript_utils import METADATA_FILENAME as METADATA
from monai.networks import convert_to_onnx, convert_to_torchscript

from scripts import bundle_metadata
from scripts.exports.trained import require_of_pytorch, write_torchscript
from scripts.networks import MapNetwork
from scripts.runtime.command_line import typed_setting
from scripts.runtime.errors import InputError
from scripts.runtime.files import write_bytes

__all__ = ["NetworkFile"]

logger = logging.getLogger(__name__)
SUFFIXES = (".ts", ".onnx")
AXES = {0: "batch", 2: "height", 3: "width"}
# of convert_to_onnx: any number and size of images; PyTorch's newer exporter doesn't come to an end
ONNX = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": AXES, "pred": AXES}}
ONNX |= {"use_trace": True, "dynamo": False}


class NetworkFile:
    """
    Writes a trained network as a file that runs without the bundle: what MONAI's ``ckpt_export`` and ``onnx_export``
    write, but complete or not at all.

    Args:
        file: to write, TorchScript (``.ts``) or ONNX (``.onnx``).
        network: on the CPU, from (B, C, H, W) to a map (B, 1, H, W) in evaluation.
        loader: loads the network's weights, called with None.
        channels: C.

    Raises:
        InputError: for another kind of file, or a network that isn't exported.
    """

    def __init__(
        self, *, file: str | None, network: MapNetwork, loader: Callable[[Any], None], channels: int = 3
    ) -> None:
        if not file or Path(file).suffix not in SUFFIXES:
            raise InputError(f"Name the file to write, {' or '.join(SUFFIXES)}, by --export_file FILE; got {file!r}.")
        require_of_pytorch(network)
        self.file, self.network, self.loader, self.channels = Path(file), network, loader, channels

    def run(self) -> None:
        """
        Write the file.

        Raises:
            InputError: when the weights can't be loaded, or the file can't be written: an older one is still there
                then.
        """
        self.loader(None)
        network = self.network.eval()
        if self.file.suffix == ".ts":
            write_torchscript(self.file, convert_to_torchscript(network), _described())
        else:
            example = torch.rand(2, self.channels, 64, 96)
            write_bytes(self.file, convert_to_onnx(network, inputs=[example], **ONNX).SerializeToString())
        logger.info(f"Written: {self.file}")


def _described() -> dict[str, bytes]:
    """What MONAI's programs look for in TorchScript: metadata, and the configs that the command line names."""
    named = typed_setting("config_file")
    files = DefaultParseValue(named) if isinstance(named, str) else named or []
    files = [files] if isinstance(files, str) else files
    found = {f"{Path(file).stem}.json": ConfigParser.load_config_file(file) for file in files}
    return {name: json.dumps(content).encode() for name, content in (found | {METADATA: bundle_metadata()}).items()}
