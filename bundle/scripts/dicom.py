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

"""DICOM images as volumes: a folder of slices in any order, or one file, with pixels as they are meant to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import ImageReader, orientation_ras_lps
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys

try:
    from pydicom.pixels import apply_color_lut, convert_color_space
except ImportError:  # pydicom 2, which MONAI Label needs
    from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

__all__ = ["DicomReader", "is_dicom", "is_one_series", "sorted_datasets"]

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as DICOM's own YBR_FULL
SPACING_TOLERANCE = 0.05  # of the distance between slices


def is_dicom(path: str | PathLike) -> bool:
    """Whether a file is a DICOM image by its preamble, whatever its name; a folder is not."""
    return Path(path).is_file() and pydicom.misc.is_dicom(path)


def is_one_series(paths: Sequence[str | PathLike]) -> bool:
    """Whether DICOM files are slices of one volume: of one series, each with a place in the patient."""
    tags = ["SeriesInstanceUID", "ImagePositionPatient"]
    headers = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags) for path in paths]
    return len({str(h.get("SeriesInstanceUID")) for h in headers}) == 1 and all(tags[1] in h for h in headers)


class DicomReader(ImageReader):
    """
    MONAI image reader of one DICOM series: a folder, a file, or a list of files.

    MONAI's `PydicomReader` orders slices by their number and measures their distance along z alone, which is wrong for
    sagittal, coronal and oblique series. Here order, distance and direction come from the positions of the slices.
    Values are rescaled (CT: Hounsfield units); MONOCHROME1 is inverted, colours become their luminance.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return all(Path(name).is_dir() or is_dicom(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[pydicom.Dataset]:
        """The slices in the order of `sorted_datasets`, which raises ValueError where they make no volume."""
        return sorted_datasets(data)

    def get_data(self, img: list[pydicom.Dataset]) -> tuple[np.ndarray, dict]:
        """The array (columns, rows, slices), float32, and MONAI's metadata with the affine to RAS in mm."""
        array = np.stack([_pixels(dataset).T for dataset in img], axis=-1)
        affine = orientation_ras_lps(_affine(img))
        return array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(array.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MetaKeys.SPACE: "RAS",
        }


def sorted_datasets(source: Sequence[PathLike] | PathLike) -> list[pydicom.Dataset]:
    """
    The images of one series, from one end of the patient to the other along the slices' normal.

    Args:
        source: a folder, whose other files are ignored; a file; or a list of files.

    Raises:
        ValueError: when there is no image, more than one series, slices differ in size or direction, lie at one
            place, or not at equal distances, or a file has several frames.
    """
    paths = [Path(p) for p in ensure_tuple(source)]
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(p for p in paths[0].iterdir() if is_dicom(p))
    datasets = [dataset for dataset in map(pydicom.dcmread, paths) if "Rows" in dataset]
    if not datasets:
        raise ValueError("has no DICOM image in it")
    if any(int(dataset.get("NumberOfFrames", 1)) > 1 for dataset in datasets):
        raise ValueError("has several frames in one file; save each frame as a file of its own")
    if len(datasets) == 1:
        return datasets
    series = {str(dataset.get("SeriesInstanceUID")) for dataset in datasets}
    if len(series) > 1:
        raise ValueError(f"has {len(series)} series; put each into a folder of its own")
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = [np.asarray(dataset.get(name, np.nan), float) for dataset in datasets]
        if not all(value.shape == values[0].shape and np.allclose(value, values[0], atol=1e-3) for value in values):
            raise ValueError(f"has slices that lack {name} or differ in it; keep those of one stack")
    if any("ImagePositionPatient" not in dataset for dataset in datasets):
        raise ValueError("has slices without ImagePositionPatient, so that nobody knows their order")
    normal = np.cross(*np.asarray(datasets[0].ImageOrientationPatient, float).reshape(2, 3))
    datasets.sort(key=lambda dataset: float(normal @ np.asarray(dataset.ImagePositionPatient, float)))
    places = np.array([normal @ np.asarray(dataset.ImagePositionPatient, float) for dataset in datasets])
    gaps = np.diff(places)
    if gaps.min() <= 0 or np.ptp(gaps) > SPACING_TOLERANCE * np.median(gaps):
        raise ValueError(
            f"has slices {gaps.min():.4g} to {gaps.max():.4g} mm apart: slices are missing, twice there, or of "
            "several stacks"
        )
    return datasets


def _affine(datasets: list[pydicom.Dataset]) -> np.ndarray:
    """From (column, row, slice) to the patient's LPS coordinates in mm; of an image without a place only the scale."""
    first, last = datasets[0], datasets[-1]
    row_spacing, column_spacing = (float(v) for v in first.get("PixelSpacing", (1, 1)))
    directions = np.asarray(first.get("ImageOrientationPatient", (1, 0, 0, 0, 1, 0)), float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = directions[0] * column_spacing
    affine[:3, 1] = directions[1] * row_spacing
    affine[:3, 3] = first.get("ImagePositionPatient", (0, 0, 0))
    if len(datasets) > 1:
        affine[:3, 2] = (np.asarray(last.ImagePositionPatient, float) - affine[:3, 3]) / (len(datasets) - 1)
    else:
        affine[:3, 2] = np.cross(*directions) * float(first.get("SliceThickness") or 1)
    return affine


def _pixels(dataset: pydicom.Dataset) -> np.ndarray:
    """(rows, columns) float32, bright where the patient's image is."""
    pixels = dataset.pixel_array  # pydicom makes RGB of YBR
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        if photometric.startswith("YBR") and not _is_decoded_to_rgb(dataset):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return pixels.astype(np.float32) @ LUMINANCE
    pixels = pixels.astype(np.float32) * float(dataset.get("RescaleSlope", 1)) + float(
        dataset.get("RescaleIntercept", 0)
    )
    return pixels.max() + pixels.min() - pixels if photometric == "MONOCHROME1" else pixels


def _is_decoded_to_rgb(dataset: pydicom.Dataset) -> bool:
    """pydicom 3 converts YBR to RGB when it decodes, pydicom 2 does not."""
    return int(pydicom.__version__.split(".")[0]) >= 3
