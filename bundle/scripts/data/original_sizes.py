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


"""The sizes of a data set's pictures in their files."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from scripts.images.reading import image_size
from scripts.images.slide_parts import source_of

__all__ = ["original_sizes"]

MOST = 1000  # files that are looked at
logger = logging.getLogger(__name__)


def original_sizes(items: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """
    Heights and widths of the pictures of a data set, from the headers of at most 1000 files from all over it.

    Slices of volumes are left out, which are no pictures; so is what can't be read.
    """
    sources = [source_of(item) for item in items if isinstance(item.get("image"), str) and "slice" not in item]
    sizes = []
    for path in sources[:: math.ceil(len(sources) / MOST) or 1]:
        try:
            width, height, *frames = image_size(path)
        except Exception as error:  # a damaged file may raise anything; whoever reads it says so
            logger.debug(f"{path}: {error}")
            continue
        if frames in ([], [1]):
            sizes.append((height, width))
    return sizes
