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

"""NIfTI and NRRD: where their voxels lie, how large they are, and files that are damaged or announce too much."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.images.loading import load_image
from scripts.runtime.errors import InputError
from scripts.volumes.reading import find_volumes, read_volume, volume_name

ARRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[2.0, 0, 0, -3], [0, 0, -5.0, 7], [0, 4.0, 0, 11], [0, 0, 0, 1]])  # RAS mm; 0.04 ml a voxel


def nifti(path: Path, affine: np.ndarray = AFFINE, unit: str = "unknown", array: np.ndarray = ARRAY) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def nrrd(path: Path, *fields: str, encoding: str = "raw", data: bytes | None = None, sizes: str = "4 5 6") -> Path:
    """NRRD's text header as its specification has it, and the voxels, first axis fastest."""
    head = ["NRRD0005", "type: int16", "dimension: 3", f"sizes: {sizes}", f"encoding: {encoding}", "endian: little"]
    voxels = ARRAY.astype("<i2").tobytes(order="F") if data is None else data
    path.write_bytes("\n".join([*head, *fields, "", ""]).encode() + voxels)
    return path


@pytest.mark.parametrize(("unit", "size"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)])
def test_nifti_in_any_unit_of_length(unit, size, tmp_path):
    stored = np.diag([1 / size] * 3 + [1]) @ AFFINE
    geometry = read_volume(nifti(tmp_path / "a.nii.gz", stored, unit)).geometry
    np.testing.assert_allclose(geometry.affine, AFFINE, rtol=1e-6)
    assert geometry.millilitres == pytest.approx(0.04)
    assert geometry.note == ""


def test_nifti_without_a_unit_is_taken_for_millimetres_with_a_word(tmp_path):
    geometry = read_volume(nifti(tmp_path / "a.nii")).geometry
    assert geometry.millilitres == pytest.approx(0.04)
    assert "names no unit" in geometry.note


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_nifti_without_a_unit_whose_numbers_can_be_no_millimetres_has_no_millilitres(size, tmp_path):
    stored = np.diag([size] * 3 + [1]) @ AFFINE
    geometry = read_volume(nifti(tmp_path / "a.nii", stored)).geometry
    assert geometry.millilitres is None
    assert "no millimetres" in geometry.note


@pytest.mark.parametrize(
    ("dimensions", "sizes", "word"), [(3, (2, 0, 5), "2x0x5 as the size"), (2, (2, 4, 5), "two axes")]
)
def test_nifti_that_lacks_a_size_has_no_millilitres(dimensions, sizes, word, tmp_path):
    """nibabel puts 1 in the place of a 0."""
    data = bytearray(nifti(tmp_path / "a.nii", unit="mm").read_bytes())
    struct.pack_into("<h", data, 40, dimensions)
    struct.pack_into("<3f", data, 80, *sizes)  # pixdim
    struct.pack_into("<2h", data, 252, 1, 0)  # qform_code, sform_code
    (tmp_path / "a.nii").write_bytes(data)
    geometry = read_volume(tmp_path / "a.nii").geometry
    assert geometry.millilitres is None
    assert word in geometry.note
    struct.pack_into("<h", data, 40, 3)
    struct.pack_into("<3f", data, 80, 2, 4, 5)
    (tmp_path / "a.nii").write_bytes(data)
    assert read_volume(tmp_path / "a.nii").geometry.millilitres == pytest.approx(0.04)


def test_nifti_whose_voxels_begin_in_its_header_is_refused(tmp_path):
    data = bytearray(nifti(tmp_path / "a.nii").read_bytes())
    struct.pack_into("<f", data, 108, 0)  # vox_offset
    (tmp_path / "a.nii").write_bytes(data)
    for read in (read_volume, load_image):
        with pytest.raises(ValueError, match="has 0 as its vox_offset"):
            read(tmp_path / "a.nii")


# Each row: a direction of the file's axes in the named space. To RAS they are those of AFFINE.
DIRECTIONS = {
    "right-anterior-superior": "(2,0,0) (0,0,4) (0,-5,0)",
    "RAS": "(2,0,0) (0,0,4) (0,-5,0)",
    "left-anterior-superior": "(-2,0,0) (0,0,4) (0,-5,0)",
    "LAS": "(-2,0,0) (0,0,4) (0,-5,0)",
    "left-posterior-superior": "(-2,0,0) (0,0,4) (0,5,0)",
    "LPS": "(-2,0,0) (0,0,4) (0,5,0)",
    "Left-Posterior-Superior": "(-2,0,0) (0,0,4) (0,5,0)",
}
ORIGINS = {"r": "(-3,7,11)", "l": "(3,7,11)", "p": "(3,-7,11)"}


@pytest.mark.parametrize("with_origin", [True, False])
@pytest.mark.parametrize("space", DIRECTIONS)
def test_nrrd_in_any_space_of_the_patient(space, with_origin, tmp_path):
    short = "p" if "LPS" in space.upper() or "poster" in space.lower() else space[0].lower()
    fields = [f"space: {space}", f"space directions: {DIRECTIONS[space]}", 'space units: "mm" "mm" "mm"']
    fields += [f"space origin: {ORIGINS[short]}"] if with_origin else []
    volume = read_volume(nrrd(tmp_path / "a.nrrd", *fields))
    affine = AFFINE.copy()
    affine[:3, 3] *= with_origin
    np.testing.assert_allclose(volume.geometry.affine, affine)
    assert volume.geometry.millilitres == pytest.approx(0.04)
    assert volume.geometry.note == ""
    np.testing.assert_array_equal(volume.array, ARRAY.transpose(0, 2, 1)[:, ::-1])  # S is the second axis, A back


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed", "elsewhere"])
def test_nrrd_in_a_space_that_is_not_the_patients_is_refused(space, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", "space directions: (2,0,0) (0,0,4) (0,-5,0)")
    with pytest.raises(ValueError, match=f"is in the space '{space.lower()}'"):
        read_volume(path)


@pytest.mark.parametrize(
    ("units", "millilitres", "note"),
    [
        ('"mm" "mm" "mm"', 0.04, ""),
        ('"cm" "cm" "cm"', 40, ""),
        ('"um" "um" "um"', 4e-11, ""),
        ('"micron" "micron" "micron"', 4e-11, ""),
        ('"m" "m" "m"', 4e7, ""),
        (None, 0.04, "names no unit"),
        ('"px" "px" "px"', None, "px"),
        ('"mm" "mm" "um"', None, "mm, um"),
    ],
)
def test_units_of_nrrd(units, millilitres, note, tmp_path):
    fields = ["space: LPS", "space directions: (2,0,0) (0,4,0) (0,0,5)"] + ([f"space units: {units}"] if units else [])
    geometry = read_volume(nrrd(tmp_path / "a.nrrd", *fields)).geometry
    assert geometry.millilitres == (None if millilitres is None else pytest.approx(millilitres))
    assert note in geometry.note
    assert bool(note) == bool(geometry.note)


@pytest.mark.parametrize("size", [0.001, 2000])
def test_nrrd_without_a_unit_whose_numbers_can_be_no_millimetres_has_no_millilitres(size, tmp_path):
    geometry = read_volume(nrrd(tmp_path / "a.nrrd", f"spacings: 2 4 {size}")).geometry
    assert geometry.millilitres is None
    assert "no millimetres" in geometry.note
    assert read_volume(nrrd(tmp_path / "a.nrrd", f"spacings: 2 4 {size}", 'units: "mm" "mm" "mm"')).geometry.measured


def test_nrrd_with_spacings_alone_is_read_with_a_word(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", "spacings: 2 4 5", 'units: "mm" "mm" "mm"')
    volume = read_volume(path)
    np.testing.assert_allclose(volume.geometry.affine, np.diag([-2, -4, 5, 1]))
    assert volume.geometry.millilitres == pytest.approx(0.04)
    assert "names no space" in volume.geometry.note


@pytest.mark.parametrize("spacings", ["spacings: 2 NaN 5", "spacings: 2 0 5", "space: LPS"])
def test_nrrd_without_a_size_of_its_voxels_is_refused(spacings, tmp_path):
    with pytest.raises(ValueError, match=r"singular affine|neither 'space directions' nor 'spacings'"):
        read_volume(nrrd(tmp_path / "a.nrrd", spacings))


@pytest.mark.parametrize("field", ["data file: secret.raw", "datafile: /etc/hostname"])
def test_nrrd_whose_voxels_are_in_another_file_is_refused(field, tmp_path):
    (tmp_path / "secret.raw").write_bytes(ARRAY.tobytes())
    path = nrrd(tmp_path / "a.nrrd", "spacings: 2 4 5", field, data=b"")
    with pytest.raises(ValueError, match="has its values in another file"):
        read_volume(path)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("bz2", bz2.compress)])
def test_compressed_nrrd_is_read_and_a_bomb_is_refused(encoding, compress, tmp_path):
    voxels = ARRAY.astype("<i2").tobytes(order="F")
    path = nrrd(tmp_path / "a.nrrd", "spacings: 2 4 5", encoding=encoding, data=compress(voxels))
    np.testing.assert_array_equal(read_volume(path).array, ARRAY[::-1, ::-1])
    bomb = nrrd(tmp_path / "b.nrrd", "spacings: 2 4 5", encoding=encoding, data=compress(bytes(2**25)))
    with pytest.raises(ValueError, match="more bytes than the voxels that its header announces"):
        read_volume(bomb)


@pytest.mark.parametrize("kind", ["RGB-color", "3-color", "list", "vector", "time"])
def test_nrrd_with_an_axis_that_is_no_direction_is_refused(kind, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", "spacings: 2 4 5", f"kinds: {kind} domain domain")
    with pytest.raises(ValueError, match=f"has an axis of the kind '{kind}'"):
        read_volume(path)
    nrrd(path, "spacings: 2 4 5", "kinds: domain space none")
    assert read_volume(path).array.shape == (4, 5, 6)


@pytest.mark.parametrize("slope", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_scaled_by_no_number_is_refused(name, slope, tmp_path):
    """nibabel gives the values as they are stored."""
    data = bytearray(nifti(tmp_path / "whole.nii").read_bytes())
    struct.pack_into("<f", data, 112, slope)  # scl_slope
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for read in (read_volume, load_image):
        with pytest.raises(ValueError, match=r"has -?(inf|nan) as its scl_slope"):
            read(tmp_path / name)
    struct.pack_into("<f", data, 112, 2)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_volume(tmp_path / name).array.max() == 2 * 119


def test_nifti_that_lies_nowhere_is_warned_of_once(tmp_path, caplog):
    """As nibabel has it: from the right to the left, to the front, upwards, around the middle."""
    image = nib.Nifti1Image(ARRAY, None)
    image.header["pixdim"][1:4] = 2, 4, 5
    nib.save(image, tmp_path / "a.nii")
    for _ in range(2):
        volume = read_volume(tmp_path / "a.nii")
        np.testing.assert_array_equal(volume.array, ARRAY[::-1])
    assert caplog.text.count(f"'{tmp_path / 'a.nii'}' doesn't say how it lies in the patient") == 1
    caplog.clear()
    read_volume(nifti(tmp_path / "b.nii"))
    assert caplog.text == ""


def test_headers_that_announce_too_many_voxels_are_refused_before_decoding(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    nrrd(tmp_path / "a.nrrd", "spacings: 2 4 5", sizes="30000 30000 30000")
    for name in ("a.nii", "a.nii.gz", "a.nrrd"):
        with pytest.raises(ValueError, match="has 30000x30000x30000 voxels, more than the"):
            read_volume(tmp_path / name)


def test_a_changed_byte_in_compressed_nifti_is_found(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", array=np.random.default_rng(0).integers(0, 999, (16, 16, 16), np.int16))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum, which stands for the voxels
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        read_volume(path)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((4, 5, 6), 1j, np.complex64), "complex"),
        (np.full((4, 5, 6), 1e300), "not finite"),
        (np.full((4, 5, 6), np.inf, np.float32), "not finite"),
        (np.zeros((4, 5, 6, 2), np.int16), "4 axes"),
    ],
)
def test_what_is_not_one_number_a_voxel_is_refused(array, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        read_volume(nifti(tmp_path / "a.nii", array=array))


def test_results_are_called_after_a_link_not_after_what_it_leads_to(tmp_path):
    (tmp_path / "blob_ab12.nii.gz").touch()
    (tmp_path / "patient1.nii.gz").symlink_to(tmp_path / "blob_ab12.nii.gz")
    assert volume_name(tmp_path / "patient1.nii.gz") == "patient1"


@pytest.mark.parametrize(
    ("name", "reason"), [("n" * 300, "File name too long"), ("a\0b", "null byte"), ("none", "no folder or volume")]
)
def test_what_is_no_name_of_a_volume_is_named(tmp_path, name, reason):
    with pytest.raises(InputError, match=rf"{reason}.*name (one|another) .*--dataset_dir"):
        find_volumes(f"{tmp_path}/{name}")
