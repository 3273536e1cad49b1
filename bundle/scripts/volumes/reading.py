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

import gzip
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from monai.data.utils import to_affine_nd
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from scripts.data.listing import check_given, earlier_results
from scripts.images.dicom import DicomFiles, DicomReader, group_files, is_dicom, unknown_size, warn_once
from scripts.images.headers import is_longer, open_nifti, read_nrrd_header, refuse_larger, stored_header
from scripts.images.limits import MAX_VOXELS
from scripts.runtime.errors import InputError

__all__ = ["SUFFIXES", "Geometry", "Volume", "find_volumes", "is_dicom_source", "read_volume", "volume_name"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd")
RAS = np.array([[0, 1], [1, 1], [2, 1]])
# Signs that turn what NRRD calls its axes' directions into RAS
NRRD_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
NIFTI_UNITS = {"mm": 1.0, "meter": 1e3, "micron": 1e-3}  # in mm
NRRD_UNITS = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e3),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometre"), 1e-3),
    "nm": 1e-6,
}
NO_UNIT = "names no unit of length: its numbers are taken as millimetres"
PLAUSIBLE = (0.01, 100)  # mm, of a voxel whose unit is not named
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies: what a result needs to be laid over it."""

    shape: tuple[int, int, int]
    """Of the array in the file's own axes."""
    affine: np.ndarray
    """(4, 4), from the file's axes to RAS coordinates in mm, as far as these are known."""
    measured: bool = True
    """Whether the size of a voxel is known."""
    note: str = ""
    """Why it is not, or what had to be assumed; goes on after the volume's name."""

    @property
    def millilitres(self) -> float | None:
        """Of a voxel, None when that is not known."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000 if self.measured else None

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
    """Whether a path is a DICOM file, or a folder with a DICOM image in it."""
    if not Path(path).is_dir():
        return is_dicom(path)
    files = _dicom_files(path)
    return bool(files.stacks or files.pictures or files.damaged)


def _dicom_files(folder: str | PathLike) -> DicomFiles:
    try:
        return group_files(path for path in sorted(Path(folder).iterdir()) if is_dicom(path))
    except PermissionError:
        return DicomFiles()


def volume_name(path: str | PathLike) -> str:
    """The name of a volume's results: that of its file without the suffix, or of its folder."""
    name = Path(os.path.abspath(path)).name  # of the link, where it is one: its target may be called by a checksum
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
            together are slices of one volume or images of their own, see `group_files`.

    Raises:
        InputError: when there is nothing.
    """
    if not isinstance(images, (str, PathLike)):
        found = [Path(image) for image in images]
    else:
        found = _volumes_in(Path(images)) if check_given(images, "volume") else [Path(images)]
    if not found:
        raise InputError(f"There is no volume ({', '.join(SUFFIXES)} or DICOM) in '{images}'.")
    return [str(path) for path in found]


def _volumes_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(set(folder.iterdir()) - earlier_results(folder))
    except PermissionError as error:
        raise InputError(f"The folder '{folder}' can't be read ({error.strerror}); allow it.") from error
    files = _dicom_files(folder)
    found = [path for path in entries if path.name.lower().endswith(SUFFIXES)]
    found += [path for path in entries if path.is_dir() and path not in found and is_dicom_source(path)]
    if files.stacks and found:
        raise InputError(f"'{folder}' holds the slices of a DICOM series beside other volumes; give each a folder.")
    slices = [path for stack in files.stacks for path in stack]
    singles = [*files.pictures, *files.damaged]
    files.warn_left_out()
    skipped = [path.name for path in entries if path not in {*found, *slices, *singles, *files.left_out}]
    if skipped:
        logger.warning(f"Not volumes, left out: {', '.join(skipped)}")
    return [folder] if slices else sorted(found + singles)


def read_volume(path: str | PathLike) -> Volume:
    """
    Read NIfTI, NRRD, a DICOM series or a single DICOM image.

    Raises:
        ValueError: for what is no volume of one value a voxel (4D, colours), is larger than `MAX_VOXELS`, has values
            that are not finite, or no place in space; its message goes on after the volume's name.
        Exception: whatever the format's library raises on a damaged file.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("is not a regular file")
    array, geometry = _reader(path)(path)
    if array.dtype.kind not in "biuf":
        raise ValueError("has complex numbers for voxels; save one value per voxel")
    with np.errstate(over="ignore"):  # what becomes infinite is named below
        array = array.reshape(geometry.shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("has values that are not finite")
    affine = geometry.affine
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError("has a singular affine, so that the position of its voxels is unknown")
    return Volume(np.ascontiguousarray(geometry.to_ras(array)), geometry)


def _reader(path: Path) -> Any:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _read_nifti
    if name.endswith(".nrrd"):
        return _read_nrrd
    if path.is_dir() or is_dicom(path):
        return _read_dicom
    raise ValueError(f"is not a volume: neither {', '.join(SUFFIXES)} nor DICOM")


def _volume_shape(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Sizes of three axes, from those in a file's header. Raises ValueError when it is no volume, or too large."""
    sizes = [int(size) for size in sizes]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    sizes += [1] * (3 - len(sizes))
    text = "x".join(map(str, sizes))
    if len(sizes) > 3:
        raise ValueError(f"has {len(sizes)} axes ({text}), must have 3; save the one volume that is meant")
    if min(sizes) < 1:
        raise ValueError("has no voxels")
    refuse_larger(sizes, MAX_VOXELS)
    return tuple(sizes)


def _read_dicom(path: Path) -> tuple[np.ndarray, Geometry]:
    reader = DicomReader()
    datasets = reader.read(path)
    array, meta = reader.get_data(datasets)
    note = unknown_size(datasets)
    return array, Geometry(_volume_shape(array.shape), meta["affine"], not note, note)


def _read_nifti(path: Path) -> tuple[np.ndarray, Geometry]:
    image = open_nifti(path)
    if image.header.get_data_dtype().names:
        raise ValueError("has colours for voxels; save one value per voxel")
    shape = _volume_shape(image.shape)
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:  # nibabel reads up to the last voxel, and not the checksum after it
            is_longer(file, image.dataobj.offset + math.prod(shape) * image.get_data_dtype().itemsize + 2**20)
    affine = to_affine_nd(3, np.asarray(image.affine, float))
    if not image.header["qform_code"] and not image.header["sform_code"]:
        warn_once(
            f"'{path}' doesn't say how it lies in the patient (qform_code and sform_code are 0): its axes are taken "
            "for left, anterior and superior"
        )
    unit = nifti_unit(image.header)
    note = "" if unit else NO_UNIT
    affine = np.diag([unit or 1.0] * 3 + [1.0]) @ affine
    implausible = _implausible(affine) if unit is None else ""
    measured = not implausible
    stored = stored_header(image)
    if stored["dim"][0] < 3:
        measured, note = False, "has two axes, and no thickness"
    elif not image.header["sform_code"] and not stored["pixdim"][1:4].all():
        measured, note = False, f"has {'x'.join(f'{s:g}' for s in stored['pixdim'][1:4])} as the size of a voxel"
    elif implausible:
        note = implausible
    return np.asanyarray(image.dataobj), Geometry(shape, affine, measured, note)


def _implausible(affine: np.ndarray) -> str:
    """Why the numbers of a file that names no unit can't be millimetres; empty where they may be."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if sizes.min() >= PLAUSIBLE[0] and sizes.max() <= PLAUSIBLE[1]:
        return ""
    return f"names no unit of length, and {'x'.join(f'{size:g}' for size in sizes)} are no millimetres of a voxel"


def nifti_unit(header: nibabel.Nifti1Header) -> float | None:
    """The unit of length of a NIfTI file in mm, None when it names none."""
    try:
        return NIFTI_UNITS.get(header.get_xyzt_units()[0])
    except KeyError:  # a code that NIfTI doesn't know
        return None


def _read_nrrd(path: Path) -> tuple[np.ndarray, Geometry]:
    header = read_nrrd_header(path, MAX_VOXELS)
    if header["dimension"] != 3:
        raise ValueError(f"has {header['dimension']} axes ({'x'.join(map(str, header['sizes']))}), must have 3")
    shape = _volume_shape(header["sizes"])
    array, _ = nrrd.read(str(path))
    affine, unit, note = _nrrd_affine(header)
    measured = unit is not None
    return array, Geometry(shape, np.diag([unit or 1.0] * 3 + [1.0]) @ affine, measured, note)


def _nrrd_affine(header: dict[str, Any]) -> tuple[np.ndarray, float | None, str]:
    """From the voxels of NRRD to RAS in its unit; that unit in mm, None where nobody knows it; what to say of it."""
    space = str(header.get("space", "lps")).lower()
    if space not in NRRD_SPACES:
        raise ValueError(
            f"is in the space '{space}', which doesn't say where the patient's right and front are; save it in LPS"
        )
    affine = np.eye(4)
    if "space directions" in header:
        affine[:3, :3] = np.asarray(header["space directions"], float).T
        units = header.get("space units")
    elif "spacings" in header:
        affine[:3, :3] = np.diag(np.asarray(header["spacings"], float))
        units = header.get("units")
    else:
        raise ValueError("has neither 'space directions' nor 'spacings', so that the size of its voxels is unknown")
    affine[:3, 3] = header.get("space origin", (0, 0, 0))
    named = {str(unit).strip().strip('"').lower() for unit in np.atleast_1d(units)} if units is not None else {""}
    notes = [] if "space" in header else ["names no space: its axes are taken as left, posterior and superior"]
    if named == {""}:
        implausible = _implausible(affine)
        unit = None if implausible else 1.0
        notes.append(implausible or NO_UNIT)
    else:
        unit = NRRD_UNITS.get(next(iter(named))) if len(named) == 1 else None
        notes += [] if unit else [f"has {', '.join(sorted(named))} as its unit, which is no one length"]
    return np.diag([*NRRD_SPACES[space], 1]) @ affine, unit, " and ".join(notes)
