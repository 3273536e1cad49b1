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

"""Masks of DICOM slides as DICOM segmentations, a pyramid of them beside the slide's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import tifffile

from scripts.images.dicom_seg import slide_segmentation
from scripts.runtime.files import replacing
from scripts.slides.listing import dicom_files

__all__ = ["write_slide_segmentations"]

WHOLE = 2**27  # pixels of a level that is made at once: highdicom takes a few bytes for each


def write_slide_segmentations(folder: Path, mask: Path, slide: Path, scale: tuple[float, float], label: str) -> None:
    """
    Write ``1.dcm``, ``2.dcm`` ... into a folder, from the finest level of the mask that may be in memory on.

    Args:
        folder: made; segmentations of an earlier run in it are replaced.
        mask: pyramid of `write_pyramid`, whose levels are each half of the one before.
        slide: one of the slide's files.
        scale: pixels of the slide's largest image in a pixel of the mask, along x and y.
        label: name of the segment.

    Raises:
        ImportError: without highdicom.
        Exception: see `slide_segmentation`.
    """
    import highdicom as hd

    source = _largest(slide)
    shared = {"series_instance_uid": hd.UID(), "pyramid_uid": hd.UID()}
    folder.mkdir(exist_ok=True)
    number = 0
    with tifffile.TiffFile(mask) as file:
        for k, level in enumerate(file.series[0].levels):
            if np.prod(level.shape) > WHOLE:
                continue
            number += 1
            factors = scale[0] * 2**k, scale[1] * 2**k
            made = slide_segmentation(level.asarray() > 0, source, factors, label, instance_number=number, **shared)
            with replacing(folder / f"{number}.dcm", binary=True) as target:
                made.save_as(target)
    while (former := folder / f"{number + 1}.dcm").is_file():  # of a larger mask
        former.unlink()
        number += 1


def _largest(slide: Path) -> pydicom.Dataset:
    """Header of the largest image of the series that a file is of."""
    own = pydicom.dcmread(slide, stop_before_pixels=True)
    found = [own]
    for path in dicom_files(slide.parent):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError):
            continue  # OpenSlide has done without it
        if header.get("SeriesInstanceUID") == own.get("SeriesInstanceUID") and "VOLUME" in header.get("ImageType", []):
            found.append(header)
    return max(found, key=lambda header: header.get("TotalPixelMatrixColumns", 0))
