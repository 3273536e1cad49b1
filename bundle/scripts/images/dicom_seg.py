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
"""DICOM segmentation objects (DICOM-SEG) of masks, beside the volumes and slides that they were made on."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any

import numpy as np
import pydicom

from scripts import bundle_version
from scripts.images.dicom import sorted_datasets

__all__ = ["dicom_segmentation", "slide_segmentation"]


def dicom_segmentation(mask: np.ndarray, series: str | PathLike, label: str = "lesion") -> Any:
    """
    The mask as a DICOM segmentation, which refers to its source images and lies where they lie in the patient.

    Args:
        mask: boolean (columns, rows, slices), on the voxels that `DicomReader` gives of `series`.
        series: DICOM file, or folder of the one series.
        label: name of the segment.

    Returns:
        A `highdicom.seg.Segmentation`, to be saved by ``save_as``. An empty mask has frames without a voxel.

    Raises:
        ImportError: without highdicom, which is only needed here.
        Exception: of highdicom, when a segmentation can't refer to such images (no place in a patient).
    """
    datasets = sorted_datasets(series)
    return _segmentation(datasets, mask.transpose(2, 1, 0), label)  # one frame for each image, in this order


def slide_segmentation(
    mask: np.ndarray, slide: pydicom.Dataset, scale: tuple[float, float], label: str, **pyramid: Any
) -> Any:
    """
    The mask of a whole slide as a DICOM segmentation in tiles, on pixels of its own, which begin where the slide's do.

    Args:
        mask: boolean (rows, columns).
        slide: header of the slide's largest image.
        scale: pixels of that image in a pixel of the mask, along x and y.
        label: name of the segment.
        pyramid: what levels of one pyramid share, and their numbers: ``instance_number``, ``series_instance_uid``,
            ``pyramid_uid``.

    Returns:
        As `dicom_segmentation`.

    Raises:
        ImportError: without highdicom.
        Exception: of highdicom, or AttributeError, for a slide that lacks what a segmentation takes from it.
    """
    import highdicom as hd

    measures = slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    rows, columns = (float(value) for value in measures.PixelSpacing)
    spacing = hd.PixelMeasuresSequence(
        pixel_spacing=(rows * scale[1], columns * scale[0]), slice_thickness=measures.SliceThickness
    )
    return _segmentation([slide], mask[None], label, tile_pixel_array=True, pixel_measures=spacing, **pyramid)


def _segmentation(images: list[pydicom.Dataset], frames: np.ndarray, label: str, **settings: Any) -> Any:
    """`highdicom.seg.Segmentation` of boolean frames (N, rows, columns)."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    description = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="CDWS-MIL", version=bundle_version(), family=codes.DCM.ArtificialIntelligence
        ),
    )
    given = {
        "series_instance_uid": hd.UID(),
        "series_number": 100,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "CDWS-MIL contributors",
        "manufacturer_model_name": "CDWS-MIL",
        "software_versions": bundle_version(),
        "device_serial_number": "none",
        "omit_empty_frames": bool(frames.any()),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The string .* is unlikely", UserWarning)  # the patient's name in the series
        return hd.seg.Segmentation(
            source_images=images,
            pixel_array=frames.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[description],
            **(given | settings),
        )
