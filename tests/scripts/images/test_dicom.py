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
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    SegmentationStorage,
    generate_uid,
)
from scripts.images.dicom import DicomReader
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
    with pytest.raises(ValueError, match="is not a DICOM image but Basic Text SR"):
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


@pytest.mark.parametrize("name", ["PatientID", "FrameOfReferenceUID"])
@pytest.mark.parametrize("uid", ["1.2.3.4", None])
@pytest.mark.parametrize("others", [1, 2])
def test_slices_of_two_patients_or_frames_make_no_volume(name, uid, others, tmp_path):
    """Whatever their series is called; each part is a volume of its own."""
    parts = [(k, "7.1" if k < 4 - others else "7.2") for k in range(4)]
    for k, value in parts:
        write(tmp_path / f"{k}.dcm", SLICES[..., 0], **place(k), **{"SeriesInstanceUID": uid, name: value})
    for source in (tmp_path, sorted(tmp_path.iterdir())):
        with pytest.raises(ValueError, match=f"has 2 series; put each into a folder .*{name}"):
            DicomReader().read(source)
    for k, value in parts:
        (tmp_path / value).mkdir(exist_ok=True)
        (tmp_path / f"{k}.dcm").rename(tmp_path / value / f"{k}.dcm")
    assert read_volume(tmp_path / "7.1").array.shape == (6, 8, 4 - others)
    assert read_volume(tmp_path / "7.2").array.shape == (6, 8, others)


@pytest.mark.parametrize("other", [0, 1, 2])
def test_a_slice_that_alone_has_a_pixel_size_or_lacks_it_is_refused(other, tmp_path):
    """1 x 1 mm, which is what its shape would be without."""
    folder = write_series(tmp_path / "scan")
    write(folder / f"{other}.dcm", SLICES[..., other], **(place(other) | {"PixelSpacing": None}))
    with pytest.raises(ValueError, match="differ in PixelSpacing, or some that lack it"):
        read_volume(folder)
    for k in {0, 1, 2} - {other}:
        write(folder / f"{k}.dcm", SLICES[..., k], **(place(k) | {"PixelSpacing": None}))
    write(folder / f"{other}.dcm", SLICES[..., other], **place(other))
    with pytest.raises(ValueError, match="differ in PixelSpacing, or some that lack it"):
        read_volume(folder)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_a_slice_without_rescaling_among_others_is_named(name, tmp_path):
    scaling = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    folder = write_series(tmp_path / "scan", **scaling)
    write(folder / "1.dcm", SLICES[..., 1], **(place(1) | scaling | {name: None}))
    with pytest.raises(ValueError, match=rf"has slices without {name} among others with it, '1\.dcm'"):
        read_volume(folder)


def test_slices_in_two_units_are_refused(tmp_path):
    folder = write_series(tmp_path / "scan", RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")
    scaling = {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}
    write(folder / "1.dcm", SLICES[..., 1], **place(1), **scaling)
    with pytest.raises(ValueError, match=r"differ in RescaleType \(HU, US\)"):
        read_volume(folder)


def test_numbers_that_do_not_end_with_the_highest_bit_are_refused(tmp_path):
    """12 bit in the upper ones of 16: as they stand they would be 16 times too large."""
    pixels = (SLICES[..., 1] * 16).astype(np.uint16)
    path = write(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=15)
    with pytest.raises(ValueError, match="has 15 as HighBit, must be 11 with 12 bits stored"):
        read_volume(path)
    write(path, SLICES[..., 1].astype(np.uint16), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(flat(read_volume(path)), SLICES[..., 1:2])


def enhanced(path: Path, position: list[float], shared: bool) -> Path:
    """An enhanced CT of one frame, which says all in its functional groups."""
    macros = {
        "PixelMeasuresSequence": {"PixelSpacing": [0.5, 0.25], "SliceThickness": 4},
        "PlaneOrientationSequence": {"ImageOrientationPatient": SAGITTAL},
        "PixelValueTransformationSequence": {"RescaleSlope": 2, "RescaleIntercept": -1000, "RescaleType": "HU"},
        "PlanePositionSequence": {"ImagePositionPatient": position},
    }
    common, frame = Dataset(), Dataset()
    for k, (name, elements) in enumerate(macros.items()):
        macro = Dataset()
        macro.update(elements)
        setattr(common if shared and k < 3 else frame, name, [macro])
    groups = {"SharedFunctionalGroupsSequence": [common], "PerFrameFunctionalGroupsSequence": [frame]}
    pixels = np.full((6, 8), 10 + int(position[0]), np.int16)
    return write(path, pixels, EnhancedCTImageStorage, NumberOfFrames=1, **groups)


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_image_of_one_frame_is_as_its_functional_groups_say(shared, tmp_path):
    volume = read_volume(enhanced(tmp_path / "a.dcm", [7, 8, 9], shared))
    np.testing.assert_array_equal(volume.array, np.full((1, 6, 8), 2 * 17 - 1000))
    assert volume.geometry.note == ""
    assert volume.geometry.millilitres == pytest.approx(0.5 * 0.25 * 4 / 1000)
    # columns go to the back, 0.25 mm apart; rows to the feet, 0.5 mm; the normal to the patient's right, 4 mm
    affine = [[0, 0, 4, -7], [-0.25, 0, 0, -8], [0, -0.5, 0, 9], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.geometry.affine, affine)
    folder = tmp_path / "series"
    for name, x in (("b.dcm", 3), ("a.dcm", 6), ("c.dcm", 0)):
        enhanced(folder / name, [x, 8, 9], shared)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array[:, 0, 0], [2 * 16 - 1000, 2 * 13 - 1000, 2 * 10 - 1000])
    assert volume.geometry.millilitres == pytest.approx(0.5 * 0.25 * 3 / 1000)


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
    with pytest.raises(ValueError, match="has 2 DICOM images that are not slices of one stack"):
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


def test_an_inverse_image_that_says_it_is_not_inverted_is_refused(tmp_path):
    elements = {"PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "INVERSE", "Modality": "CR"}
    path = write(tmp_path / "a.dcm", SLICES[..., 0].astype(np.uint16), **elements)
    with pytest.raises(ValueError, match=r"has INVERSE as PresentationLUTShape.*but is MONOCHROME2"):
        read_volume(path)
    write(path, SLICES[..., 0].astype(np.uint16), **(elements | {"PresentationLUTShape": "IDENTITY"}))
    np.testing.assert_array_equal(flat(read_volume(path)), SLICES[..., :1])


def test_the_table_of_a_modality_is_applied(tmp_path):
    """Numbers from 10 on stand for 500, 600, 700; what is below or above for the first or the last."""
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [3, 10, 16], struct.pack("<3H", 500, 600, 700), "US"
    pixels = np.tile(np.array([9, 10, 11, 12, 13, 200], np.uint8)[:, None], (1, 8))
    path = write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(flat(read_volume(path))[:, 0, 0], [500, 500, 600, 700, 700, 700])


TABLE = bytes([50, 60, 70])  # of 8 bit, for the numbers from 10 on


@pytest.mark.parametrize(
    ("kind", "content"),
    [("OW", TABLE + b"\0"), ("OW", struct.pack("<3H", *TABLE)), ("US", [*TABLE]), ("US", [50 + 256 * 60, 70])],
)
def test_a_table_of_8_bit_is_applied(kind, content, tmp_path):
    """Packed, as its standard says, or each entry in a word of its own."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [3, 10, 8], "US"
    table.add_new("LUTData", kind, content)
    pixels = np.tile(np.array([9, 10, 11, 12, 13, 200], np.uint8)[:, None], (1, 8))
    path = write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[table])
    np.testing.assert_array_equal(flat(read_volume(path))[:, 0, 0], [50, 50, 60, 70, 70, 70])
    table.LUTDescriptor = [9, 10, 8]
    write(path, pixels, ModalityLUTSequence=[table])
    with pytest.raises(ValueError, match=r"its ModalityLUTSequence has [46] of 9 entries"):
        read_volume(path)


@pytest.mark.parametrize(
    ("photometric", "samples"),
    [("HSV", 3), ("YBR_PARTIAL_420", 3), ("YBR_ICT", 3), ("MONOCHROME2", 3), ("RGB", 1), ("YBR_FULL", 1), (None, 1)],
)
def test_numbers_that_are_no_known_colours_are_refused(photometric, samples, tmp_path):
    """YBR_ICT is what JPEG 2000 makes RGB of, and this file is not compressed."""
    stored = np.zeros((6, 8 * samples), np.uint8)
    elements = {"Rows": 8, "SamplesPerPixel": samples, "PlanarConfiguration": 0}
    path = write(tmp_path / "a.dcm", stored, PhotometricInterpretation=photometric, **elements)
    with pytest.raises(ValueError, match=f"PhotometricInterpretation is {photometric}, with {samples} numbers a pixel"):
        read_volume(path)


def test_frames_that_nobody_has_counted_are_refused(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((6, 16), np.uint8), Rows=8)
    with pytest.raises(ValueError, match="several frames"):
        read_volume(path)


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
    (tmp_path / "b.dcm").write_bytes(path.read_bytes())
    for name, label in (("none", 0), ("some", 1)):
        (tmp_path / f"{name}.csv").write_text(f"slice,label\n0,{label}\n")
    training = [{"image": "a.dcm", "slices": "none.csv"}, {"image": "b.dcm", "slices": "some.csv"}]
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
