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

"""The run that exports a folder: loads the network, checks that it can be exported, and fills the folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts import bundle_root
from scripts.exports.bioimageio import write_bioimageio
from scripts.exports.trained import TrainedModel, require_of_pytorch
from scripts.exports.wsinfer import write_wsinfer
from scripts.losses.pooling import Pooling
from scripts.networks import MapNetwork
from scripts.runtime.errors import InputError
from scripts.runtime.files import new_folder
from scripts.runtime.values import positive_number
from scripts.slides import model_mpp
from scripts.training.checkpoints import original_mpp, original_size
from scripts.training.included import is_included

__all__ = ["Exporter"]

logger = logging.getLogger(__name__)
WRITERS: dict[str, Callable[[Path, TrainedModel], None]] = {"wsinfer": write_wsinfer, "bioimageio": write_bioimageio}


class Exporter:
    """
    Writes a trained network as a folder for another program.

    Args:
        folder: to make; it takes its name when it is complete.
        export_as: one of `WRITERS`.
        network: as in inference.
        loader: loads the network's weights, called with None.
        ckpt_path: of the weights, for what is said of them.
        pool: from the map to the image's probability.
        mean, std: normalisation of the network's input.
        spatial_size: (H, W) of its images in pixels.
        mpp: micrometres per pixel of its images; None: of a model that comes with the bundle, what is known of that.
        class_name: of what it finds.
        threshold: probability from which on a pixel is of that class.
        superpixels: must be False.

    Raises:
        InputError: for a setting that can't be used, or a network that isn't exported.
    """

    def __init__(
        self,
        *,
        folder: str | None,
        export_as: str,
        network: MapNetwork,
        loader: Callable[[Any], None],
        ckpt_path: str,
        pool: Pooling,
        mean: Sequence[float],
        std: Sequence[float],
        spatial_size: Sequence[int],
        mpp: float | None = None,
        class_name: str = "Cancer",
        threshold: float = 0.5,
        superpixels: bool = False,
    ) -> None:
        if export_as not in WRITERS:
            raise InputError(f"export_as must be one of {', '.join(WRITERS)}; got '{export_as}'.")
        if not folder:
            raise InputError("Name the folder to write by --export_dir FOLDER.")
        if superpixels:
            raise InputError("Superpixels are made outside of the network, and can't be exported; leave them out.")
        require_of_pytorch(network)
        if len(mean) != 3:
            raise InputError(f"Networks of RGB pictures alone are exported; this one takes {len(mean)} channels.")
        if not isinstance(class_name, str) or not class_name.strip():
            raise InputError(f"class_name must be the name of what the network finds; got {class_name!r}.")
        self.shipped = is_included(ckpt_path, Path(bundle_root()) / "models")
        if mpp is None:
            if not self.shipped and original_mpp(ckpt_path) is None:
                raise InputError(
                    "Nothing says at which resolution the network was trained; give micrometres per pixel of the "
                    "images, as the network saw them after the resizing, by --mpp."
                )
            mpp = model_mpp(bundle_root(), original_size(ckpt_path), spatial_size, ckpt_path)
        positive_number("mpp", mpp)
        self.folder, self.write, self.loader, self.network = Path(folder), WRITERS[export_as], loader, network
        self.model = TrainedModel(
            network=network,
            pool=pool,
            mean=[float(value) for value in mean],
            std=[float(value) for value in std],
            spatial_size=(int(spatial_size[0]), int(spatial_size[1])),
            mpp=float(mpp),
            class_name=class_name.strip(),
            threshold=float(threshold),
            shipped=self.shipped,
        )

    def run(self) -> None:
        """
        Write the folder.

        Raises:
            InputError: when it is there already, or the weights can't be loaded.
        """
        with new_folder(self.folder) as temporary:
            self.loader(None)
            self.network.eval().requires_grad_(False)
            self.write(temporary, self.model)
        logger.info(f"Written: {self.folder}")
