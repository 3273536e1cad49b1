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

"""At which resolution a model sees slides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from scripts import bundle_metadata
from scripts.training.checkpoints import original_mpp
from scripts.training.included import is_included

__all__ = ["model_mpp"]

logger = logging.getLogger(__name__)


def model_mpp(
    bundle_root: str,
    original_size: Sequence[float] | None = None,
    spatial_size: Sequence[int] | None = None,
    ckpt_path: str | None = None,
) -> float:
    """
    Micrometres per pixel of what a model sees: of its training images, where they were parts of slides; else as
    ``metadata.json`` states it of the included models' images, and for any other model with a warning.

    Args:
        bundle_root: folder of the bundle.
        original_size: height and width of the training images in their files, if the checkpoint knows them.
        spatial_size: to which they were resized.
        ckpt_path: checkpoint of the model.
    """
    known = None if ckpt_path is None else original_mpp(ckpt_path)
    if known is not None and original_size is not None and spatial_size is not None:
        return known * original_size[0] / spatial_size[0]
    image = bundle_metadata(bundle_root)["network_data_format"]["inputs"]["image"]
    mpp = image["mpp"]
    if original_size is not None and spatial_size is not None:
        mpp = image["mpp_of_files"] * original_size[0] / spatial_size[0]
    if ckpt_path is not None and not is_included(ckpt_path, Path(bundle_root) / "models"):
        logger.warning(
            f"'{ckpt_path}' doesn't say at which resolution it was trained: slides are read at {mpp:.3g} micrometres "
            "per pixel, as if its images were those of the included models; give --mpp if they weren't."
        )
    return mpp
