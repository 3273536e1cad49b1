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

"""Volumes of any format in one orientation, and back to that of their file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from monai.data import NibabelReader, NrrdReader
from monai.data.utils import to_affine_nd
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from scripts.dicom import DicomReader, is_dicom, is_one_series
from scripts.errors import InputError
from scripts.readers import refuse_detached

__all__ = ["SUFFIXES", "Geometry", "Volume", "find_volumes", "is_dicom_source", "read_volume", "volume_name"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
RAS = np.array([[0, 1], [1, 1], [2, 1]])
NRRD_SPACES = ("left-posterior-superior", "right-anterior-superior")  # LPS, RAS: MONAI takes all others for RAS
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies: what a result needs to be laid over it."""

    shape: tuple[int, int, int]
    """Of the array in the file's own axes."""
    affine: np.ndarray
    """(4, 4), from the file's axes to RAS coordinates in mm."""

    def to_ras(self, array: np.ndarray) -> np.ndarray:
        """From the file's axes to those nearest to right, anterior and superior: no voxel changes its value."""
        return apply_orientation(array, io_orientation(self.affine))

    def from_ras(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ras`."""
        return apply_orientation(array, ornt_transform(RAS, io_orientation(self.affine)))

    @property
    def ras_affine(self) -> np.ndarray:
        """(4, 4), from the axes of `to_ras` to RAS coordinates in mm."""
        return self.affine @ inv_ornt_aff(io_orientation(self.affine), self.shape)


@dataclass(frozen=True)
class Volume:
    """A volume with its axes nearest to right, anterior and superior."""

    array: np.ndarray
    """(X, Y, Z) float32, the values of the file."""
    geometry: Geometry


def is_dicom_source(path: str | PathLike) -> bool:
    """Whether a path is a DICOM file, or a folder with one in it."""
    return is_dicom(path) or (Path(path).is_dir() and any(map(is_dicom, Path(path).iterdir())))


def volume_name(path: str | PathLike) -> str:
    """The name of a volume's results: that of its file without the suffix, or of its folder."""
    name = Path(path).resolve().name
    if Path(path).is_dir():
        return name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    if suffix is None:
        suffix = ".dcm" if name.lower().endswith(".dcm") else ""  # DICOM files may be called 1.2.840
    return name.removesuffix(name[len(name) - len(suffix) :])


def find_volumes(images: str | PathLike | Sequence[str]) -> list[str]:
    """
    The volumes to infer on.

    Args:
        images: a list of volumes; a volume: NIfTI, NRRD or DICOM file, or a folder with the slices of one DICOM series;
            or a folder of volumes, each a file or such a folder in it, sorted by name. DICOM files that lie in a folder
            together are slices of one volume if they are of one series and have a place in the patient, else images of
            their own.

    Raises:
        InputError: when there is nothing, or two results would have one name.
    """
    if not isinstance(images, (str, PathLike)):
        found = [Path(image) for image in images]
    elif Path(images).is_dir():
        found = _volumes_in(Path(images))
    else:
        found = [Path(images)]
    missing = [f"'{path}'" for path in found if not path.exists()]
    if missing:
        raise InputError(f"There is no volume {', '.join(missing)}; name a file or a folder with --dataset_dir.")
    if not found:
        raise InputError(f"There is no volume ({', '.join(SUFFIXES)} or DICOM) in '{images}'.")
    names = [volume_name(path) for path in found]
    twice = [f"'{path}'" for path, name in zip(found, names, strict=True) if names.count(name) > 1]
    if twice:
        raise InputError(f"The results of {', '.join(twice)} would have one name; rename the volumes.")
    return [str(path) for path in found]


def _volumes_in(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    slices = [path for path in entries if is_dicom(path)]
    found = [path for path in entries if path.name.lower().endswith(SUFFIXES)]
    found += [path for path in entries if path.is_dir() and is_dicom_source(path)]
    one_series = len(slices) > 1 and is_one_series(slices)
    if one_series and not found:
        return [folder]
    if one_series:
        raise InputError(f"'{folder}' holds the slices of a DICOM series beside other volumes; give each a folder.")
    skipped = [path.name for path in entries if path not in found and path not in slices]
    if skipped:
        logger.warning(f"Not volumes, left out: {', '.join(skipped)}")
    return sorted(found + slices)


def read_volume(path: str | PathLike) -> Volume:
    """
    Read NIfTI, NRRD, a DICOM series or a single DICOM image.

    Raises:
        ValueError: for what is no volume of one value a voxel (4D, colours), has values that are not finite, or no
            place in space; its message goes on after the volume's name.
        Exception: whatever the format's library raises on a damaged file.
    """
    reader = _reader(Path(path))()  # not by LoadImage, which tries other readers where one says what is wrong
    array, meta = reader.get_data(reader.read(str(path)))
    array = array.astype(np.float32)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(_too_many_axes(array.shape))
    if 0 in array.shape:
        raise ValueError("has no voxels")
    if not np.isfinite(array).all():
        raise ValueError("has values that are not finite")
    affine = to_affine_nd(3, np.asarray(meta["affine"], float))
    if not np.isfinite(affine).all() or np.isclose(np.linalg.det(affine[:3, :3]), 0, atol=1e-12):
        raise ValueError("has a singular affine, so that nobody knows where its voxels lie")
    geometry = Geometry(array.shape, affine)
    return Volume(np.ascontiguousarray(geometry.to_ras(array)), geometry)


def _reader(path: Path) -> type:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        if nibabel.load(path).header.get_data_dtype().names:
            raise ValueError("has colours for voxels; save one value a voxel")
        return NibabelReader
    if name.endswith(".nrrd"):
        refuse_detached(path)
        header = nrrd.read_header(str(path))
        if header["dimension"] > 3:
            raise ValueError(_too_many_axes(header["sizes"]))
        if header.get("space", NRRD_SPACES[0]) not in NRRD_SPACES or "space directions" not in header:
            raise ValueError(f"has no directions in one of the spaces {', '.join(NRRD_SPACES)}; save it as NIfTI")
        return NrrdReader
    if is_dicom_source(path):
        return DicomReader
    raise ValueError(f"is no volume: neither {', '.join(SUFFIXES)} nor DICOM")


def _too_many_axes(shape: Sequence[int]) -> str:
    sizes = "x".join(map(str, shape))
    return f"has {len(shape)} axes ({sizes}), must have 3; save the one volume that is meant"
