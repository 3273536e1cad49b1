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

"""Headers of NIfTI and NRRD: what can't be read as it is meant is refused before a voxel is decoded."""

from __future__ import annotations

import bz2
import gzip
import math
from collections.abc import Sequence
from os import PathLike
from typing import IO, Any

import nibabel
import nrrd
import numpy as np

__all__ = ["is_longer", "open_nifti", "read_nrrd_header", "refuse_larger", "stored_header"]

DECOMPRESS = dict.fromkeys(("gzip", "gz"), gzip.open) | dict.fromkeys(("bzip2", "bz2"), bz2.open)
# Kinds of a NRRD's axes along which there are places; along others there are the parts of a value, or times.
SPATIAL = ("domain", "space", "none", "???", "unknown", "stub", "scalar")


def open_nifti(path: str | PathLike) -> nibabel.Nifti1Image:
    """
    A NIfTI file, not decoded yet.

    Raises:
        ValueError: when its scaling is not finite: nibabel would leave the values as they are stored; or when its
            voxels begin within its header: nibabel would read that as voxels.
        Exception: whatever nibabel raises on a damaged file.
    """
    image = nibabel.load(path)
    header = stored_header(image)
    slope, begin = header.get("scl_slope", 1), header.get("vox_offset", header.sizeof_hdr)
    if not np.isfinite(slope):
        raise ValueError(f"has {slope} as its scl_slope, which leaves its values unknown; save it with 0 or 1")
    if not begin >= header.sizeof_hdr:
        raise ValueError(f"has {begin:g} as its vox_offset, within its header; save it anew")
    return image


def stored_header(image: nibabel.Nifti1Image) -> nibabel.Nifti1Header:
    """The header as it is in the file: nibabel's own forgets the scaling, and puts 1 where a size is missing."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        return image.header_class.from_fileobj(file, check=False)


def read_nrrd_header(path: str | PathLike, most: int) -> dict[str, Any]:
    """
    The header of a NRRD file.

    Args:
        path: of the file.
        most: how many voxels are read.

    Raises:
        ValueError: when the values are in another file, which may be any, or in an axis that is no direction; when
            there are more than `most`, or more than the header announces.
        Exception: whatever pynrrd raises on a damaged file.
    """
    with open(path, "rb") as file:
        header = nrrd.read_header(file)
        if "data file" in header or "datafile" in header:
            raise ValueError("has its values in another file (a detached header); save it as one file")
        others = [kind for kind in header.get("kinds", ()) if str(kind).lower() not in SPATIAL]
        if others:
            raise ValueError(
                f"has an axis of the kind '{others[0]}', which is not a direction; save one value per voxel"
            )
        refuse_larger(header["sizes"], most)
        if header.get("encoding") in DECOMPRESS:
            with DECOMPRESS[header["encoding"]](file) as stream:
                if is_longer(stream, math.prod(map(int, header["sizes"])) * 8):  # of the widest type
                    raise ValueError("has more bytes than the voxels that its header announces")
    return header


def refuse_larger(sizes: Sequence[int], most: int) -> None:
    """Raises ValueError when axes of these sizes have more voxels."""
    if math.prod(map(int, sizes)) > most:
        text = "x".join(map(str, sizes))
        raise ValueError(f"has {text} voxels, more than the {most} that are read; crop or resample it")


def is_longer(stream: IO[bytes], limit: int) -> bool:
    """Whether a compressed file has more than so many bytes, in little memory. Raises OSError where it is damaged."""
    size = 0
    while size <= limit and (data := stream.read(2**20)):
        size += len(data)
    return size > limit
