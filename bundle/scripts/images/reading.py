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

"""The reader of a file, the size that its header tells, and how many are decoded at once."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import nibabel
import nrrd
import pydicom
from monai.data import ImageReader, NibabelReader, NrrdReader

from scripts.images.annotations import AnnotationReader, asap_region, region_size
from scripts.images.dicom import DicomReader, is_dicom
from scripts.images.headers import open_nifti, read_nrrd_header, refuse_larger
from scripts.images.pictures import MAX_PIXELS, picture_size
from scripts.images.readers import PictureReader, SlidePartReader
from scripts.images.slide_parts import SlidePart

__all__ = ["image_size", "reader_of"]


def reader_of(path: str | PathLike) -> ImageReader:
    """
    The reader of a file, whose error is the last word on it.

    That is MONAI's of NIfTI (.nii, .nii.gz) and NRRD (.nrrd), `AnnotationReader` of .xml, `DicomReader` of DICOM,
    `SlidePartReader` of a `SlidePart`, and `PictureReader` of everything else.

    Raises:
        OSError: for what is no regular file: nobody may ever write into a pipe.
        ValueError: for NIfTI and NRRD that `open_nifti` and `read_nrrd_header` refuse, or of more than `MAX_PIXELS`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("is not a regular file")
    if isinstance(path, SlidePart):
        return SlidePartReader()
    name = Path(path).name.lower()
    if name.endswith((".nii", ".nii.gz")):
        refuse_larger(open_nifti(path).shape, MAX_PIXELS)
        return NibabelReader()
    if name.endswith(".nrrd"):
        read_nrrd_header(path, MAX_PIXELS)
        return NrrdReader()
    if name.endswith(".xml"):
        return AnnotationReader()
    return DicomReader() if is_dicom(path) else PictureReader()


def image_size(path: str | PathLike) -> tuple[int, ...]:
    """
    Width and height of a picture as stored, or the sizes of a volume's axes, from the header alone.

    Raises:
        OSError: as `PictureReader.read`, as far as the header tells.
        Exception: whatever the format's library raises on a damaged file.
    """
    reader = reader_of(path)
    if isinstance(path, SlidePart):
        return path.size()
    if isinstance(reader, NibabelReader):
        return tuple(nibabel.load(path).shape)
    if isinstance(reader, NrrdReader):
        return tuple(int(size) for size in nrrd.read_header(str(path))["sizes"])
    if isinstance(reader, AnnotationReader):
        return region_size(asap_region(path))
    if isinstance(reader, DicomReader):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)
    return picture_size(path)
