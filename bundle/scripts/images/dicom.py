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

import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import ImageReader, orientation_ras_lps
from monai.utils import ensure_tuple
from monai.utils.enums import MetaKeys
from pydicom.uid import DeflatedExplicitVRLittleEndian

from scripts.images.limits import MAX_VOXELS
from scripts.runtime.errors import first_line

try:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, convert_color_space
except ImportError:  # pydicom 2, which MONAI Label needs
    from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut, convert_color_space

__all__ = ["DicomFiles", "DicomReader", "group_files", "is_dicom", "sorted_datasets", "unknown_size", "warn_once"]

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as DICOM's own YBR_FULL
# Photometric interpretations; those of JPEG 2000 are RGB once they are decoded.
ONE_SAMPLE, THREE_SAMPLES = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), ("RGB", "YBR_FULL", "YBR_FULL_422")
BY_JPEG_2000 = ("YBR_ICT", "YBR_RCT")
SPACING_TOLERANCE = 0.05  # of the distance between slices
# Elements that mean, when they are present and empty, what they mean when they are absent.
MAY_BE_EMPTY = (
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness"),
    *("NominalScannedPixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("NumberOfFrames", "ImageType", "SpecificCharacterSet", "SOPClassUID", "HighBit"),
    *("SeriesInstanceUID", "PatientID", "FrameOfReferenceUID"),
    *("PlanarConfiguration", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "Rows", "Columns"),
)
SERIES = ("SeriesInstanceUID", "PatientID", "FrameOfReferenceUID")  # what the slices of a volume share
SEVERAL = "; put each into a folder of its own (those of one share " + ", ".join(SERIES) + ")"
# What an enhanced image has of its frames, and other images have of themselves
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
FRAME_MACROS = (
    *("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"),
    "PixelValueTransformationSequence",
)
META_AT = 144  # bytes of preamble, "DICM" and the length of what says how the rest is written
PIXEL_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")  # the first is in the patient
logger = logging.getLogger(__name__)
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it raises, it prints before with a traceback


@cache
def warn_once(message: str) -> None:
    """Log a warning, of a file that is read again and again, a single time."""
    logger.warning(message)


def is_dicom(path: str | PathLike) -> bool:
    """Whether a file is DICOM by its preamble, whatever its name; a folder is not."""
    try:
        return Path(path).is_file() and pydicom.misc.is_dicom(path)
    except OSError:  # reading it will say why it can't be read
        return Path(path).suffix.lower() == ".dcm"


@dataclass
class DicomFiles:
    """DICOM files that lie in a folder together, as they belong together."""

    stacks: list[list[Path]] = field(default_factory=list)
    """The slices of each series that has a place in the patient."""
    pictures: list[Path] = field(default_factory=list)
    """Images of their own: alone in their series, without a place, or of several frames."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Files whose header can't be read, and why."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """What is no image, or a localizer, and what it is."""

    def warn_left_out(self) -> None:
        """Say once what is left out."""
        if self.left_out:
            names = ", ".join(f"{path.name} ({what})" for path, what in self.left_out.items())
            warn_once(f"Left out in '{next(iter(self.left_out)).parent}': {names}")


def group_files(paths: Iterable[Path]) -> DicomFiles:
    """
    The one rule by which DICOM files make volumes, in whatever run.

    Images of one series, patient and frame of reference are a stack when there are several, and any of them has a place
    or a direction in the patient; other images stand alone. What is no image (DICOMDIR, reports, segmentations ...) is
    left out, and so are localizers: images that say so, and an image alone in its series that crosses the slices of a
    stack.
    """
    found = DicomFiles()
    series: dict[tuple, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    for path in paths:
        try:
            header = _read(path, stop_before_pixels=True)
            what = _why_no_image(header)
            if not what and not {"Rows", "Columns"} <= set(header.dir()):
                raise ValueError("it has no Rows or Columns")
        except Exception as error:  # a damaged file may raise anything
            found.damaged[path] = first_line(error)
            continue
        if what:
            found.left_out[path] = what
        elif int(header.get("NumberOfFrames", 1)) > 1:
            found.pictures.append(path)
        else:
            series[_series_of(header)].append((path, header))
    placed = [s for s in series.values() if any("ImagePositionPatient" in h for _, h in s) or any(map(_normal_of, s))]
    stacks = [s for s in placed if len(s) > 1]
    for images in series.values():
        if any(images is stack for stack in stacks):
            found.stacks.append([path for path, _ in images])
        elif len(images) == 1 and stacks and all(_crosses(images[0], stack[0]) for stack in stacks):
            found.left_out[images[0][0]] = "a localizer"
        else:
            found.pictures += [path for path, _ in images]
    return found


def _series_of(header: pydicom.Dataset) -> tuple[str, ...]:
    return tuple(str(header.get(name)) for name in SERIES)


def _normal_of(image: tuple[Path, pydicom.Dataset]) -> tuple[float, ...] | None:
    """Direction of an image's normal in the patient, None without one."""
    try:
        directions = _numbers(image[1], "ImageOrientationPatient", 6)
    except ValueError:
        return None
    return None if directions is None else tuple(np.cross(*directions.reshape(2, 3)))


def _crosses(image: tuple[Path, pydicom.Dataset], other: tuple[Path, pydicom.Dataset]) -> bool:
    normals = _normal_of(image), _normal_of(other)
    return None not in normals and abs(float(np.dot(*normals))) < 0.9  # more than 25 degrees apart


def _why_no_image(header: pydicom.Dataset) -> str:
    """What a DICOM file is when it is no image to segment; empty when it is one."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    name = kind.name if kind else ""
    if "Storage" in name and "Image" not in name:
        return "DICOMDIR" if name == "Media Storage Directory Storage" else name.removesuffix(" Storage")
    if not name.endswith("Storage") and "Rows" not in header:  # of a private class
        return "no image"
    return "a localizer" if "LOCALIZER" in ensure_tuple(header.get("ImageType", ())) else ""


class DicomReader(ImageReader):
    """
    MONAI image reader of one DICOM series: a folder, a file, or a list of files.

    MONAI's `PydicomReader` orders slices by their number and measures their distance along z alone, which is wrong for
    sagittal, coronal and oblique series. Here order, distance and direction come from the positions of the slices.
    Values are those after the modality's table or rescaling (CT: Hounsfield units); MONOCHROME1 is inverted, the whole
    series about one value, but for Hounsfield units, which mean what they mean however they are shown. Colours become
    their luminance.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return all(Path(name).is_dir() or is_dicom(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[pydicom.Dataset]:
        """The slices in the order of `sorted_datasets`, which raises ValueError where they make no volume."""
        return sorted_datasets(data)

    def get_data(self, img: list[pydicom.Dataset]) -> tuple[np.ndarray, dict]:
        """The array (columns, rows, slices), float32, and MONAI's metadata with the affine to RAS in mm."""
        array = _pixels(img)
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
        source: a folder, of which the images are taken (see `group_files`); a file; or a list of files.

    Raises:
        ValueError: when there is no image, more than one series, slices differ in size or direction, lie at one
            place, or not at equal distances, a file has several frames, or there are too many voxels.
    """
    paths = [Path(p) for p in ensure_tuple(source)]
    if len(paths) == 1 and paths[0].is_dir():
        paths = _one_volume(group_files(sorted(p for p in paths[0].iterdir() if is_dicom(p))))
    _check_size([_read(path, stop_before_pixels=True) for path in paths])
    datasets = [_read(path) for path in paths]
    return datasets if len(datasets) == 1 else _in_order(datasets)


def _one_volume(files: DicomFiles) -> list[Path]:
    """The files of a folder that are its volume. Raises ValueError when that is not one."""
    if files.damaged:
        path, why = next(iter(files.damaged.items()))
        raise ValueError(f"has a file that can't be read, '{path.name}' ({why})")
    volumes = len(files.stacks) + len(files.pictures)
    if not volumes:
        raise ValueError("has no DICOM image in it")
    files.warn_left_out()
    if volumes == 1:
        return files.stacks[0] if files.stacks else files.pictures
    if files.stacks:
        raise ValueError(f"has {volumes} series{SEVERAL}")
    raise ValueError(f"has {volumes} DICOM images that are not slices of one stack; name the file that is meant")


def _check_size(headers: Sequence[pydicom.Dataset]) -> None:
    """Raises ValueError, before anything is decoded, for what is no image, too large, or has several frames."""
    for header in headers:
        what = _why_no_image(header)
        if what and what != "a localizer":
            raise ValueError(f"is not a DICOM image but {what}")
        frames = int(header.get("NumberOfFrames", 1))
        if frames > 1:
            raise ValueError(f"has several frames in one file, {frames}; save each frame as a file of its own")
        if min(int(header.get("Rows", 0)), int(header.get("Columns", 0))) < 1:
            raise ValueError("has no Rows or Columns, or 0 of them")
        stored = int(header.get("BitsStored", 0))
        highest = int(header.get("HighBit", stored - 1))
        if stored and highest != stored - 1:  # as old machines wrote it, in the upper bits or not
            raise ValueError(
                f"has {highest} as HighBit, must be {stored - 1} with {stored} bits stored: which bits are the "
                "image's is unknown; save it again"
            )
        shown = header.get("PhotometricInterpretation"), header.get("PresentationLUTShape")  # PS3.3, C.8.11.3.1.2
        if shown == ("MONOCHROME2", "INVERSE") and not _in_hounsfield_units(header):
            raise ValueError(
                "has INVERSE as PresentationLUTShape, which goes with MONOCHROME1, but is MONOCHROME2: whether its "
                "highest values are bright is unknown; correct one of them"
            )
    voxels = sum(int(h.Rows) * int(h.Columns) * int(h.get("SamplesPerPixel", 1)) for h in headers)
    if voxels > MAX_VOXELS:
        raise ValueError(f"has {voxels} voxels, more than the {MAX_VOXELS} that are read")


def _in_order(datasets: list[pydicom.Dataset]) -> list[pydicom.Dataset]:
    series = set(map(_series_of, datasets))
    if len(series) > 1:
        raise ValueError(f"has {len(series)} series{SEVERAL}")
    first = datasets[0]
    for name in ("Rows", "Columns", "PhotometricInterpretation"):
        if any(dataset.get(name) != first.get(name) for dataset in datasets):
            raise ValueError(f"has slices that differ in {name}; keep those of one stack")
    for name in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"):
        without = [dataset for dataset in datasets if name not in dataset]
        if 0 < len(without) < len(datasets):
            which = f"'{Path(without[0].filename).name}'" + (f" and {len(without) - 1} more" if without[1:] else "")
            raise ValueError(f"has slices without {name} among others with it, {which}; keep those of one stack")
    units = sorted({str(dataset.RescaleType) for dataset in datasets if "RescaleType" in dataset})
    if len(units) > 1:
        raise ValueError(f"has slices that differ in RescaleType ({', '.join(units)}); keep those of one stack")
    (spacing, known), *others = map(_pixel_size, datasets)
    if not all(np.allclose(other, spacing, atol=1e-3) and also == known for other, also in others):
        raise ValueError("has slices that differ in PixelSpacing, or some that lack it; keep those of one stack")
    directions = [_numbers(dataset, "ImageOrientationPatient", 6) for dataset in datasets]
    if any(d is None or not np.allclose(d, directions[0], atol=1e-3) for d in directions):
        raise ValueError("has slices that lack ImageOrientationPatient or differ in it; keep those of one stack")
    positions = [_numbers(dataset, "ImagePositionPatient", 3) for dataset in datasets]
    if any(position is None for position in positions):
        raise ValueError("has slices without ImagePositionPatient, so that their order is unknown")
    normal = np.cross(*directions[0].reshape(2, 3))
    order = np.argsort(np.array(positions) @ normal, kind="stable")
    steps = np.diff(np.array(positions)[order], axis=0)
    gaps = steps @ normal
    if gaps.min() <= 0 or np.ptp(gaps) > SPACING_TOLERANCE * np.median(gaps):
        raise ValueError(
            f"has slices {gaps.min():.4g} to {gaps.max():.4g} mm apart: slices are missing, duplicated, or of "
            "several stacks"
        )
    if np.ptp(steps, axis=0).max() > 2 * SPACING_TOLERANCE * np.median(gaps):
        raise ValueError("has slices that are shifted against each other, not in one line; keep those of one stack")
    return [datasets[k] for k in order]


def unknown_size(datasets: Sequence[pydicom.Dataset]) -> str:
    """Why nobody knows the size of the voxels in the patient; empty when it is known."""
    if not _pixel_size(datasets[0])[1]:
        return "has no PixelSpacing"
    return "has no SliceThickness" if len(datasets) == 1 and _thickness(datasets[0]) is None else ""


def _pixel_size(dataset: pydicom.Dataset) -> tuple[np.ndarray, bool]:
    """Distance of rows and of columns, and whether it is known, and in the patient rather than on the detector."""
    for name in PIXEL_SIZES:
        values = np.ravel(np.asarray(dataset.get(name, ()), float))
        if values.size == 2 and np.isfinite(values).all() and values.min() > 0:
            return values, name == PIXEL_SIZES[0]
    return np.ones(2), False


def _thickness(dataset: pydicom.Dataset) -> float | None:
    value = float(dataset.get("SliceThickness", 0))
    return value if 0 < value < math.inf else None


def _numbers(dataset: pydicom.Dataset, name: str, count: int) -> np.ndarray | None:
    """The numbers of an element, None where it is absent. Raises ValueError for others than so many finite ones."""
    if name not in dataset:
        return None
    values = np.ravel(np.asarray(dataset[name].value, float))
    if values.size != count or not np.isfinite(values).all():
        raise ValueError(f"has {values.tolist()} as {name}, must be {count} numbers")
    if name == "ImageOrientationPatient":
        products = values.reshape(2, 3) @ values.reshape(2, 3).T
        if not np.allclose(products, np.eye(2), atol=1e-2):
            raise ValueError(f"has {values.tolist()} as {name}, which are not two directions at right angles")
    return values


def _affine(datasets: list[pydicom.Dataset]) -> np.ndarray:
    """From (column, row, slice) to the patient's LPS coordinates in mm; of an image without a place only the scale."""
    first, last = datasets[0], datasets[-1]
    row_spacing, column_spacing = _pixel_size(first)[0]
    directions = _numbers(first, "ImageOrientationPatient", 6)
    directions = np.eye(3)[:2] if directions is None else directions.reshape(2, 3)
    position = _numbers(first, "ImagePositionPatient", 3)
    affine = np.eye(4)
    affine[:3, 0] = directions[0] * column_spacing
    affine[:3, 1] = directions[1] * row_spacing
    affine[:3, 3] = 0 if position is None else position
    if len(datasets) > 1:
        affine[:3, 2] = (np.asarray(last.ImagePositionPatient, float) - affine[:3, 3]) / (len(datasets) - 1)
    else:
        affine[:3, 2] = np.cross(*directions) * (_thickness(first) or 1)
    return affine


def _pixels(datasets: Sequence[pydicom.Dataset]) -> np.ndarray:
    """(columns, rows, slices) float32, bright where the patient's image is."""
    slices = []
    for dataset in datasets:
        try:
            slices.append(_slice(dataset).T)
        except Exception as error:  # a decoder may raise anything on a damaged file
            which = f"has a slice, '{Path(dataset.filename).name}', that " if len(datasets) > 1 else ""
            raise ValueError(f"{which}can't be decoded ({first_line(error)})") from error
    array = np.stack(slices, axis=-1)
    if datasets[0].get("PhotometricInterpretation") != "MONOCHROME1" or _in_hounsfield_units(datasets[0]):
        return array
    ends = np.concatenate([_range(dataset) for dataset in datasets])
    return np.float32(ends.min() + ends.max()) - array


def _slice(dataset: pydicom.Dataset) -> np.ndarray:
    """(rows, columns) float32, the values that the stored ones stand for."""
    photometric = dataset.get("PhotometricInterpretation")
    samples = int(dataset.get("SamplesPerPixel", 1))
    known = ONE_SAMPLE if samples == 1 else THREE_SAMPLES
    known += BY_JPEG_2000 if samples > 1 and "2000" in dataset.file_meta.TransferSyntaxUID.name else ()
    if photometric not in known:
        raise ValueError(
            f"its PhotometricInterpretation is {photometric}, with {samples} numbers a pixel; save it as RGB or grey"
        )
    pixels = dataset.pixel_array  # pydicom makes RGB of YBR
    if pixels.shape[:2] != (dataset.Rows, dataset.Columns):  # as many times as large as it should be
        raise ValueError("its pixel data are of several frames; save the one that is meant")
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        if photometric.startswith("YBR") and not _is_decoded_to_rgb(dataset):
            pixels = convert_color_space(pixels, photometric, "RGB")
        return pixels.astype(np.float32) @ LUMINANCE
    return _meant(pixels, dataset)


def _meant(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if "ModalityLUTSequence" in dataset:
        _widen(dataset.ModalityLUTSequence[0], dataset.file_meta.TransferSyntaxUID.is_little_endian)
        return apply_modality_lut(stored, dataset).astype(np.float32)
    slope = float(dataset.get("RescaleSlope", 1))
    if slope == 0:
        raise ValueError("its RescaleSlope is 0, which leaves nothing of its values")
    return stored.astype(np.float32) * slope + float(dataset.get("RescaleIntercept", 0))


def _widen(table: pydicom.Dataset, is_little_endian: bool) -> None:
    """Make a table of 8 bit one of 16, which pydicom reads: its entries are packed, or each in a word of its own."""
    if table.LUTDescriptor[2] != 8:
        return
    count = table.LUTDescriptor[0] or 2**16
    words = table.LUTData
    if isinstance(words, bytes):
        words = np.frombuffer(words, "<u2" if is_little_endian else ">u2")
    entries = np.atleast_1d(np.asarray(words, "<u2"))
    entries = entries if len(entries) >= count else entries.view(np.uint8)
    if len(entries) < count:
        raise ValueError(f"its ModalityLUTSequence has {len(entries)} of {count} entries")
    table.LUTDescriptor[2] = 16
    table["LUTData"] = pydicom.DataElement("LUTData", "US", entries[:count].tolist())


def _range(dataset: pydicom.Dataset) -> np.ndarray:
    """What the lowest and the highest number that could be stored stand for."""
    bits = int(dataset.BitsStored)
    lowest = -(2 ** (bits - 1)) if dataset.get("PixelRepresentation", 0) == 1 else 0
    return _meant(np.array([lowest, lowest + 2**bits - 1]), dataset)


def _in_hounsfield_units(dataset: pydicom.Dataset) -> bool:
    """Whether values are rescaled to HU, as those of CT are when nothing else is said (PS3.3, C.8.2.1.1.2)."""
    rescaled = "RescaleSlope" in dataset and "RescaleIntercept" in dataset
    return rescaled and dataset.get("RescaleType", "HU" if dataset.get("Modality") == "CT" else "") == "HU"


def _is_decoded_to_rgb(dataset: pydicom.Dataset) -> bool:
    """pydicom 3 converts YBR to RGB when it decodes, pydicom 2 does not."""
    return int(pydicom.__version__.split(".")[0]) >= 3


def _read(path: str | PathLike, **options: Any) -> pydicom.Dataset:
    """
    Read a DICOM file, in which what may be empty is absent when it is empty, and what functional groups say of an only
    frame is said of the image.
    """
    _refuse_bomb(path)
    dataset = pydicom.dcmread(path, **options)
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        for group in (group for name in FUNCTIONAL_GROUPS for group in (dataset.get(name) or ())[:1]):
            for macro in (macro for name in FRAME_MACROS for macro in (group.get(name) or ())[:1]):
                dataset.update(macro)
    for name in MAY_BE_EMPTY:
        if name in dataset and all(value in ("", None) for value in np.atleast_1d(_values(dataset, name))):
            del dataset[name]
    return dataset


def _values(dataset: pydicom.Dataset, name: str) -> list:
    value = dataset[name].value
    if isinstance(value, (str, bytes)) or value is None or not hasattr(value, "__len__"):
        return [value]
    return list(value)


def _refuse_bomb(path: str | PathLike) -> None:
    """Raises ValueError for a deflated file larger than any image that is read: pydicom inflates it as a whole."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with Path(path).open("rb") as file:
        file.seek(META_AT + meta.FileMetaInformationGroupLength)
        while data := inflater.unconsumed_tail or file.read(2**16):
            size += len(inflater.decompress(data, 2**20))
            if size > MAX_VOXELS:
                raise ValueError(f"is deflated, and has more than the {MAX_VOXELS} bytes that are read of one file")
