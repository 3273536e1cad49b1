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

"""Writing pictures of results under their name only when they are complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from monai.config import PathLike
from monai.data import PILWriter
from monai.data.folder_layout import default_name_formatter

__all__ = ["PictureWriter", "name_of_results"]


def name_of_results(meta: Mapping[str, Any], saver: object) -> dict[str, Any]:
    """What MONAI's `SaveImage` names a file after: the image's own, or ``results`` in its metadata."""
    named = default_name_formatter(meta, saver)
    return named if "results" not in meta else named | {"subject": f"{meta['results']}{Path(named['subject']).suffix}"}


class PictureWriter(PILWriter):
    """MONAI's `PILWriter`, which leaves no half of a picture when the run is stopped or the disk is full."""

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """See `PILWriter.write`."""
        path = Path(filename)
        temporary = path.with_name(f".{uuid4().hex}.part{path.suffix}")  # Pillow takes the format from the suffix
        try:
            super().write(temporary, verbose, **kwargs)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
