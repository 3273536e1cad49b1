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

"""DICOM as its standard says: which files are one volume, what its values are, and how large its voxels."""

from __future__ import annotations

import json
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    SegmentationStorage,
    generate_uid,
)
from scripts.runtime.errors import InputError
from scripts.volumes.datalist import list_slices, load_slice_datalist
from scripts.volumes.reading import find_volumes, read_volume
from scripts.volumes.slices import LoadSlice

SLICES = np.full((6, 8, 3), 10, np.int16)  # (columns, rows, slices)
SLICES[1:3, 2:6, 1] = 200
AXIAL, SAGITTAL, CORONAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, 0, 0, -1]


def write(path: Path, pixels: np.ndarray | None = None, kind: str = CTImageStorage, **elements) -> Path:
    """A DICOM file of (columns, rows); an element given as None is there and empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = kind, meta.MediaStorageSOPInstanceUID, "CT"
    dataset.SeriesInstanceUID = "1.2.3.4"
    if pixels is not None:
        dataset.Columns, dataset.Rows = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
        dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
        dataset.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def place(k: int) -> dict:
    return {
        "ImagePositionPatient": [0, 0, 2.5 * k],
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [1, 1],
        "SliceThickness": 2.5,
    }


def write_series(folder: Path, array: np.ndarray = SLICES, **elements) -> Path:
    """Axial slices, from the feet on."""
    for k in range(array.shape[2]):
        write(folder / f"{k}.dcm", array[..., k], **(place(k) | elements))
    return folder


def flat(volume) -> np.ndarray:
    """A volume's array as `SLICES` has it: axial LPS."""
    return volume.array[::-1, ::-1]


def listed(folder: Path) -> list[str]:
    return [Path(path).name for path in find_volumes(folder)]


LEFT_OUT = {
    "DICOMDIR": {"kind": MediaStorageDirectoryStorage},
    "report.dcm": {"kind": BasicTextSRStorage},
    "segmentation.dcm": {"kind": SegmentationStorage, "pixels": SLICES[..., 0]},
    "private.dcm": {"kind": "1.3.46.670589.11.0.0.12.2"},
    "says_so.dcm": {"pixels": SLICES[..., 0], "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], **place(9)},
    "crosses.dcm": {"pixels": SLICES[..., 0], **place(0), "ImageOrientationPatient": SAGITTAL},
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_image_of_the_series_is_left_out_with_a_word(name, tmp_path, caplog):
    folder = write_series(tmp_path / "scan")
    write(folder / name, **({"SeriesInstanceUID": "1.2.3.9"} | LEFT_OUT[name]))
    assert listed(folder) == ["scan"]
    assert listed(tmp_path) == ["scan"]
    np.testing.assert_array_equal(flat(read_volume(folder)), SLICES)
    assert f"{name} (" in caplog.text


def test_a_folder_of_reports_is_no_volume(tmp_path, caplog):
    write(tmp_path / "reports" / "a.dcm", kind=BasicTextSRStorage)
    write(tmp_path / "one.dcm", SLICES[..., 0])
    assert listed(tmp_path) == ["one.dcm"]
    assert "reports" in caplog.text
    with pytest.raises(ValueError, match="has no DICOM image"):
        read_volume(tmp_path / "reports")
    with pytest.raises(ValueError, match="is no DICOM image but Basic Text SR"):
        read_volume(tmp_path / "reports" / "a.dcm")


@pytest.mark.parametrize("second", [3, 1])
def test_two_series_in_a_folder_are_refused_in_listing_and_in_a_data_set_alike(second, tmp_path):
    folder = write_series(tmp_path / "scan")
    for k in range(second):
        write(folder / f"other{k}.dcm", SLICES[..., k], **place(k), SeriesInstanceUID="1.2.3.9")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "scan", "mask": "scan"}]}')
    for run in (lambda: list_slices(folder), lambda: load_slice_datalist(tmp_path, ["training"])):
        with pytest.raises(InputError, match=r"'.*scan' has 2 series; put each into a folder of its own"):
            run()


def test_a_series_of_which_one_slice_lacks_its_place_does_not_fall_into_slices(tmp_path):
    folder = write_series(tmp_path / "scan")
    write(folder / "1.dcm", SLICES[..., 1], **(place(1) | {"ImagePositionPatient": None}))
    assert listed(folder) == ["scan"]
    with pytest.raises(ValueError, match="has slices without ImagePositionPatient"):
        read_volume(folder)


def test_images_without_a_place_stand_alone(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.dcm", SLICES[..., 0])
    assert listed(tmp_path) == ["a.dcm", "b.dcm"]
    with pytest.raises(ValueError, match="has 2 DICOM images that are no slices of one stack"):
        read_volume(tmp_path)


def test_a_damaged_file_beside_a_series_is_named(tmp_path):
    folder = write_series(tmp_path / "scan")
    whole = (folder / "2.dcm").read_bytes()
    (folder / "2.dcm").write_bytes(whole[:300])
    with pytest.raises(InputError, match=r"scan' has a file that can't be read, '2\.dcm'"):
        list_slices(folder)
    (folder / "2.dcm").write_bytes(whole[:-20])  # in its pixels
    with pytest.raises(InputError, match=r"scan' has a slice, '2\.dcm', that can't be decoded"):
        list_slices(folder)


def test_slices_that_are_not_in_one_line_are_refused(tmp_path):
    folder = write_series(tmp_path / "scan")
    write(folder / "1.dcm", SLICES[..., 1], **(place(1) | {"ImagePositionPatient": [40, 0, 2.5]}))
    with pytest.raises(ValueError, match="shifted against each other"):
        read_volume(folder)


def test_directions_that_are_none_are_refused(tmp_path):
    write(tmp_path / "a.dcm", SLICES[..., 0], **(place(0) | {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}))
    with pytest.raises(ValueError, match="not two directions at right angles"):
        read_volume(tmp_path / "a.dcm")


EMPTY = [
    *("RescaleSlope", "RescaleIntercept", "NumberOfFrames", "ImageType", "PixelSpacing", "ImagerPixelSpacing"),
    *("SliceThickness", "SpecificCharacterSet", "SeriesInstanceUID", "ModalityLUTSequence", "RescaleType"),
]


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_empty_is_absent(name, tmp_path):
    folder = write_series(tmp_path / "scan", **{name: [] if name.endswith("Sequence") else None})
    assert name in pydicom.dcmread(folder / "0.dcm")
    np.testing.assert_array_equal(flat(read_volume(folder)), SLICES)
    np.testing.assert_array_equal(flat(read_volume(folder / "1.dcm")), SLICES[..., 1:2])


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_a_single_image_with_an_empty_place_is_read(name, tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1], **(place(0) | {name: None}))
    np.testing.assert_array_equal(flat(read_volume(path)), SLICES[..., 1:2])


def test_a_series_of_monochrome1_is_inverted_about_one_value_as_its_images_are(tmp_path):
    """8 bit: what is stored as 255 - x is x, whatever else is in the slice."""
    stored = (255 - SLICES).astype(np.uint8)
    folder = write_series(tmp_path / "scan", stored, PhotometricInterpretation="MONOCHROME1", Modality="MR")
    np.testing.assert_array_equal(flat(read_volume(folder)), SLICES)
    for k in range(3):
        np.testing.assert_array_equal(flat(read_volume(folder / f"{k}.dcm")), SLICES[..., k : k + 1])


def test_rescaled_slices_of_monochrome1_are_inverted_about_one_value(tmp_path):
    """As of PET, where each slice has a slope: x is stored as 20 - x / slope, in 4 bits of 8."""
    for k, slope in enumerate((1, 2, 4)):
        elements = {"RescaleSlope": slope, "RescaleIntercept": 0, "PhotometricInterpretation": "MONOCHROME1"}
        pixels = np.full((6, 8), 8 // slope, np.uint8)
        write(tmp_path / f"{k}.dcm", pixels, **place(k), **elements, Modality="PT", BitsStored=4, HighBit=3)
    # all stand for 8; the highest number that could be stored is 15, and stands for 60 at most
    np.testing.assert_array_equal(read_volume(tmp_path).array, np.full((6, 8, 3), 52))


def test_hounsfield_units_stay_what_they_are(tmp_path):
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PhotometricInterpretation": "MONOCHROME1"}
    folder = write_series(tmp_path / "scan", (SLICES + 1024).astype(np.uint16), **elements)
    np.testing.assert_array_equal(flat(read_volume(folder)), SLICES)


def test_the_table_of_a_modality_is_applied(tmp_path):
    """Numbers from 10 on stand for 500, 600, 700; what is below or above for the first or the last."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [3, 10, 16], struct.pack("<3H", 500, 600, 700), "US"
    pixels = np.tile(np.array([9, 10, 11, 12, 13, 200], np.uint8)[:, None], (1, 8))
    path = write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(flat(read_volume(path))[:, 0, 0], [500, 500, 600, 700, 700, 700])


def test_a_slope_of_0_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1], RescaleSlope=0, RescaleIntercept=5)
    with pytest.raises(ValueError, match="RescaleSlope is 0"):
        read_volume(path)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("directions", [AXIAL, SAGITTAL, CORONAL, OBLIQUE], ids=["axial", "sagittal", "coronal", "ob"])
def test_an_image_of_any_orientation_is_one_slice(directions, axis, tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1], **(place(0) | {"ImageOrientationPatient": directions}))
    items = list_slices(path, axis)
    assert [(item["slice"], item["count"]) for item in items] == [(0, 1)]
    # as it is seen: columns to the patient's left or back, rows to the back or the feet
    np.testing.assert_array_equal(LoadSlice(axis)(str(path), 0)[0], SLICES[..., 1])
    for name, label in (("none", 0), ("some", 1)):
        (tmp_path / f"{name}.csv").write_text(f"slice,label\n0,{label}\n")
    training = [{"image": "a.dcm", "slices": "none.csv"}, {"image": "a.dcm", "slices": "some.csv"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": training}))
    assert [item["label"] for item in load_slice_datalist(tmp_path, ["training"], axis)["training"]] == [0, 1]


@pytest.mark.parametrize(
    ("elements", "millilitres"),
    [
        ({"PixelSpacing": [2, 5], "SliceThickness": 10}, 0.1),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": [float("nan"), 1]}, None),
        ({"PixelSpacing": [-1, -1]}, None),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [1, 1]}, None),  # on the detector, not in the patient
        ({"SliceThickness": None}, None),
        ({"SliceThickness": 0}, None),
    ],
)
def test_the_size_of_a_voxel_is_known_or_nobody_says_it(elements, millilitres, tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1], **(place(0) | elements))
    geometry = read_volume(path).geometry
    assert geometry.millilitres == (None if millilitres is None else pytest.approx(millilitres))
    assert bool(geometry.note) == (millilitres is None)


def test_a_series_without_a_pixel_size_has_no_millilitres(tmp_path):
    geometry = read_volume(write_series(tmp_path / "scan", PixelSpacing=None)).geometry
    assert geometry.millilitres is None
    assert "PixelSpacing" in geometry.note


def test_an_image_that_announces_too_many_voxels_is_refused_before_it_is_decoded(tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1])
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset.save_as(path)
    with pytest.raises(ValueError, match="has 4294836225 voxels, more than"):
        read_volume(path)


def test_a_deflated_file_is_read_and_one_that_inflates_without_end_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", SLICES[..., 1])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    np.testing.assert_array_equal(flat(read_volume(path)), SLICES[..., 1:2])
    head = path.read_bytes()[: 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength]
    deflater = zlib.compressobj(wbits=-15)
    zeros = bytes(2**24)
    path.write_bytes(head + b"".join(deflater.compress(zeros) for _ in range(33)) + deflater.flush())  # 528 MiB
    with pytest.raises(ValueError, match="is deflated, and has more than"):
        read_volume(path)


@pytest.mark.skipif(bool(find_spec("pylibjpeg") or find_spec("gdcm")), reason="there is a decoder of these files")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("JPEG-lossy.dcm", "12-bit precision"), ("SC_rgb_jpeg_gdcm.dcm", "pylibjpeg - requires pylibjpeg")],
)
def test_what_a_decoder_says_is_in_the_message(name, reason, capfd):
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    with pytest.raises(ValueError, match=reason) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_the_working_folder_is_a_series(tmp_path, monkeypatch):
    monkeypatch.chdir(write_series(tmp_path / "scan"))
    items = list_slices(".")
    assert len(items) == 3
    assert Path(LoadSlice()(".", 1).meta["filename_or_obj"]).name == "scan_slice001"
