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

"""Maps of slides as OME-Zarr (NGFF 0.4, the version that most programs read), from the OME-TIFF of `pyramid`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import tifffile

from scripts.runtime.errors import InputError
from scripts.runtime.files import new_folder

__all__ = ["require_zarr", "write_ome_zarr"]


def require_zarr() -> None:
    """Raises InputError when the package zarr, which nothing else needs, is not installed."""
    if find_spec("zarr") is None:
        raise InputError("ome_zarr needs the package zarr: pip install 'zarr>=3', or leave ome_zarr out.")


def write_ome_zarr(path: Path, pyramid: Path, mpp: tuple[float, float]) -> None:
    """
    Write a pyramid of `write_pyramid` once more, tile by tile; it takes its name when it is complete.

    Args:
        path: of the folder to make.
        pyramid: the OME-TIFF.
        mpp: micrometres per pixel along x and y.
    """
    import zarr

    with new_folder(path) as folder, tifffile.TiffFile(pyramid) as file:
        series = file.series[0]
        group = zarr.open_group(folder, mode="w", zarr_format=2)
        scales = [[mpp[1] * 2**k, mpp[0] * 2**k] for k in range(len(series.levels))]
        group.attrs["multiscales"] = [
            {
                "version": "0.4",
                "name": series.name,
                "axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"],
                "datasets": [
                    {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
                    for k, scale in enumerate(scales)
                ],
            }
        ]
        for k, level in enumerate(series.levels):
            page = level.pages[0]
            array = group.create_array(
                str(k),
                shape=page.shape,
                chunks=(page.tilelength, page.tilewidth),
                dtype=page.dtype,
                chunk_key_encoding={"name": "v2", "separator": "/"},
                fill_value=0,
            )
            for tile, (*_, top, left, _), (_, height, width, _) in page.segments():
                if tile is not None and tile.any():  # what is zero takes no file
                    array[top : top + height, left : left + width] = tile[0, :height, :width, 0]
