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

"""Inference on volumes through the shipped configs: results lie where the structure lies, in every format."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid
from scripts.evaluation import evaluator
from scripts.images.dicom import DicomReader
from scripts.losses.area_ranking import area_ranked_labels
from scripts.runtime.errors import InputError, input_error_of
from scripts.volumes import datalist as slices
from scripts.volumes.reading import read_volume
from scripts.volumes.writing import VolumeWriter

DARK, BRIGHT = 10, 200
OBLIQUE = np.array([[0.0, 1.9, 0.5, -20], [-0.8, 0.2, 1.0, 7], [0.1, -0.6, 2.8, 31], [0, 0, 0, 1]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def corner(shape=(9, 12, 7)) -> np.ndarray:
    """Dark but for a bright box near one corner: no flip, turn or transposition leaves it as it is."""
    array = np.full(shape, DARK, np.int16)
    array[1:4, 1:6, -3:-1] = BRIGHT
    return array


def infer(configs, red_detector, folder, output, *overlays, **overrides) -> Path:
    names = ["inference", "slices", *(overlays or ["mri"])]
    run(
        "inferring",
        config_file=[str(configs / f"{name}.json") for name in names],
        ckpt_path=str(red_detector),
        output_dir=str(output),
        fusion_weights=[1.0, 0.0, 0.0],
        logging_file=False,
        **({"dataset_dir": str(folder), "percentiles": [0, 100]} | overrides),
    )
    return output / "predictions"


def assert_lies_on(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """The mask marks the bright voxels of the array and no other, in its place in the patient."""
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(image.dataobj), (array > 100).astype(np.uint8))


AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "anisotropic LPS": np.array([[-0.4, 0, 0, 80], [0, -0.9, 0, 60], [0, 0, 5.0, -30], [0, 0, 0, 1]]),
    "coronal stack": np.array([[1.0, 0, 0, 0], [0, 0, -3.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
}


@pytest.mark.parametrize("name", AFFINES)
def test_nifti_in_any_orientation(name, configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    affine = AFFINES[name]
    image = nib.Nifti1Image(corner(), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "in" / "a.nii.gz")
    axcodes = nib.aff2axcodes(affine)
    in_plane = [corner().shape[i] for pair in ("LR", "AP") for i, code in enumerate(axcodes) if code in pair]
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=in_plane)
    assert_lies_on(out / "a_mask.nii.gz", corner(), affine)
    written = nib.load(out / "a_probability.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_allclose(written.get_fdata(), corner() > 100, atol=1e-6)
    assert written.header.get_zooms() == pytest.approx(image.header.get_zooms())
    assert written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("axis", [0, 1])
def test_every_axis_gives_the_same_place(axis, configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(corner(), np.eye(4)), tmp_path / "in" / "a.nii")
    size = [n for a, n in enumerate(corner().shape) if a != axis]
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=size, slice_axis=axis)
    assert_lies_on(out / "a_mask.nii.gz", corner(), np.eye(4))


def test_big_endian_single_slice_and_nrrd(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    big = nib.Nifti1Image(corner().astype(">i2"), AFFINES["anisotropic LPS"], nib.Nifti1Header(endianness=">"))
    nib.save(big, tmp_path / "in" / "big.nii")
    assert nib.load(tmp_path / "in" / "big.nii").header.endianness == ">"
    one = corner()[..., -2:-1]
    nib.save(nib.Nifti1Image(one, OBLIQUE), tmp_path / "in" / "one.nii.gz")
    header = {
        "space": "left-posterior-superior",
        "space directions": (LPS @ OBLIQUE)[:3, :3].T,
        "space origin": (LPS @ OBLIQUE)[:3, 3],
    }
    nrrd.write(str(tmp_path / "in" / "slicer.nrrd"), corner(), header)
    # oblique: the axes nearest to left-right and front-back are the file's second and first
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[24, 24])
    for name, array, affine in (
        ("big", corner(), AFFINES["anisotropic LPS"]),
        ("one", one, OBLIQUE),
        ("slicer", corner(), OBLIQUE),
    ):
        mask = nib.load(out / f"{name}_mask.nii.gz")
        np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
        marked, truth = np.asarray(mask.dataobj) > 0, array > 100
        assert 2 * (marked & truth).sum() / (marked.sum() + truth.sum()) > 0.8  # resized: the edge may move
        flipped = [np.flip(truth, axis) for axis in range(3) if truth.shape[axis] > 1]
        assert all((marked & other).sum() < 0.5 * truth.sum() for other in flipped)
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 3
    assert [Path(row["image"]).name for row in rows] == ["big.nii", "one.nii.gz", "slicer.nrrd"]


def test_a_row_and_a_picture_for_each_volume(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    spacing = np.diag([2.0, 5.0, 10.0, 1.0])
    nib.save(nib.Nifti1Image(corner(), spacing), tmp_path / "in" / "a.nii.gz")
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[9, 12])
    (row,) = csv.DictReader((out / "predictions.csv").open())
    # the box is 3 x 5 x 2 of 9 x 12 x 7 voxels of 0.1 ml
    assert float(row["area_fraction"]) == pytest.approx(30 / 756, abs=1e-6)
    assert float(row["millilitres"]) == pytest.approx(3.0)
    assert 0.4 < float(row["probability"]) <= 1
    assert row["positive"] == ("yes" if float(row["probability"]) >= 0.5 else "no")
    page = (out / "index.html").read_text()
    said = dict(re.findall(r'<data class="(\w+)[^"]*" value="([^"]*)"', page))
    assert said == {key: row[key] for key in ("probability", "positive", "area_fraction", "millilitres")}
    assert re.findall(r'data-title="([^"]*)"', page) == ["slice 5 of 7", "slice 6 of 7"]  # the marked ones
    overlay = np.asarray(Image.open(out / "a_overlay.png").convert("RGB"))
    # slices of 18 x 60 mm as a viewer shows them: two are marked
    assert overlay.shape[0] % 320 == 0
    assert overlay.shape[1] % 96 == 0
    assert (overlay[..., 1] > overlay[..., 0] + 50).any()  # the outline


def dicom(path: Path, pixels: np.ndarray, sop_class=CTImageStorage, **attributes) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "p", "P", "", ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "", "", "1", ""
    dataset.StudyInstanceUID, dataset.Modality, dataset.ReferringPhysicianName = "1.2.3", "CT", ""
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.InstanceNumber = "1.2.3.4", 1, 1
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "1.2.3.5", ""
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder: Path, array: np.ndarray, affine_lps: np.ndarray) -> None:
    """(columns, rows, slices) to files whose names and numbers say nothing of their order."""
    folder.mkdir(parents=True)
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    order = np.random.default_rng(1).permutation(array.shape[2])
    for name, k in enumerate(order):
        dicom(
            folder / f"{name}.dcm",
            np.ascontiguousarray(array[..., k].T),
            ImagePositionPatient=list((affine_lps @ [0, 0, k, 1])[:3].round(6)),
            ImageOrientationPatient=[*affine_lps[:3, 0] / spacing[0], *affine_lps[:3, 1] / spacing[1]],
            PixelSpacing=[float(spacing[1]), float(spacing[0])],
            SliceThickness=float(spacing[2]),
            RescaleSlope=1,
            RescaleIntercept=-100,
            InstanceNumber=int(array.shape[2] - name),
            SpecificCharacterSet="",  # as anonymisers leave it
        )


def series_affine(directions) -> np.ndarray:
    """LPS affine of slices of 0.7 x 1.1 mm, 2.5 mm apart along the normal of two directions."""
    first, second = (np.asarray(d, float) / np.linalg.norm(d) for d in directions)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([first * 0.7, second * 1.1, np.cross(first, second) * 2.5], axis=1)
    affine[:3, 3] = (-31.0, 12.0, 55.0)
    return affine


@pytest.mark.parametrize(
    "directions",
    [((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, -1)), ((1, 0.2, 0), (-0.2, 1, 0.3))],
    ids=["axial", "sagittal", "oblique"],
)
def test_dicom_series_gives_nifti_and_segmentation_in_the_same_place(
    directions, configs, red_detector, tmp_path, recwarn
):
    highdicom = pytest.importorskip("highdicom")
    affine = series_affine(directions)
    array = corner()
    write_series(tmp_path / "in" / "scan", array, affine)
    settings = {
        "spatial_size": list(array.shape[:2]),
        "slice_axis": 0 if directions[0] == (0, 1, 0) else 2,  # across the stack
        "window": [0, 100],
    }
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", "ct", **settings)
    assert_lies_on(out / "scan_mask.nii.gz", array, LPS @ affine)

    segmentation = highdicom.seg.segread(out / "scan_mask.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    found = np.argwhere(volume.array > 0)
    places = found @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    truth = np.argwhere(array > 100) @ affine[:3, :3].T + affine[:3, 3]
    as_set = lambda points: {tuple(p) for p in np.round(points, 2) + 0.0}  # noqa: E731
    assert as_set(places) == as_set(truth)
    assert not [w for w in recwarn if "unlikely to represent" in str(w.message)]  # the patient's name, "P"
    sources = {pydicom.dcmread(p).SOPInstanceUID for p in (tmp_path / "in" / "scan").iterdir()}
    referenced = {
        r.ReferencedSOPInstanceUID for r in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced <= sources


def ultrasound(kind: str) -> np.ndarray:
    pixels = np.full((10, 14), DARK, np.uint8)
    pixels[1:4, 8:13] = BRIGHT
    return np.repeat(pixels[..., None], 3, axis=2) if kind == "RGB" else pixels


def test_single_ultrasound_pictures(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    grey, colour = ultrasound("grey"), ultrasound("RGB")
    # YBR of grey: the luminance, and no colour
    ybr = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=2)
    stored = {"RGB": colour, "MONOCHROME2": grey, "MONOCHROME1": 255 - grey, "YBR_FULL": ybr}
    for kind, pixels in stored.items():
        path = tmp_path / "in" / f"{kind}.dcm"
        dicom(path, pixels, UltrasoundImageStorage, Modality="US", PhotometricInterpretation=kind)
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[14, 10])
    for kind in stored:
        mask = np.asarray(nib.load(out / f"{kind}_mask.nii.gz").dataobj)
        np.testing.assert_array_equal(mask > 0, grey.T[..., None] > 100)  # (columns, rows, 1)


def test_colours_become_their_luminance(tmp_path):
    """Pure red of luminance 76, and grey of 50, as RGB and as YBR (DICOM PS3.3, C.7.6.3.1.2)."""
    red, grey = np.tile([255, 0, 0], (4, 2, 1)), np.full((4, 3, 3), 50)
    red_ybr, grey_ybr = np.tile([76, 85, 255], (4, 2, 1)), np.tile([50, 128, 128], (4, 3, 1))
    for kind, left, right in (("RGB", red, grey), ("YBR_FULL", red_ybr, grey_ybr)):
        pixels = np.concatenate([left, right], axis=1).astype(np.uint8)
        dicom(tmp_path / f"{kind}.dcm", pixels, UltrasoundImageStorage, PhotometricInterpretation=kind)
        reader = DicomReader()
        array, _ = reader.get_data(reader.read(tmp_path / f"{kind}.dcm"))
        np.testing.assert_allclose(array[:, 0, 0], [76, 76, 50, 50, 50], atol=1.5)


def test_several_frames_and_several_series_are_refused(tmp_path):
    dicom(tmp_path / "cine.dcm", np.zeros((6, 6), np.uint8), UltrasoundImageStorage, NumberOfFrames=9)
    with pytest.raises(ValueError, match="has several frames in one file"):
        read_volume(tmp_path / "cine.dcm")
    write_series(tmp_path / "scan", corner(), series_affine(((1, 0, 0), (0, 1, 0))))
    dicom(tmp_path / "scan" / "localizer.dcm", np.zeros((6, 6), np.int16), SeriesInstanceUID="9.9")
    with pytest.raises(ValueError, match="has 2 series"):
        read_volume(tmp_path / "scan")


def test_what_is_no_volume_is_named(configs, red_detector, tmp_path):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 4, 3), np.int16), np.eye(4)), tmp_path / "in" / "fmri.nii.gz")
    nib.save(nib.Nifti1Image(np.full((6, 6, 4), np.nan, np.float32), np.eye(4)), tmp_path / "in" / "nan.nii")
    (tmp_path / "in" / "cut.nii.gz").write_bytes(gzip.compress(b"\0" * 400)[:-8])
    nrrd.write(str(tmp_path / "in" / "dwi.nrrd"), np.zeros((6, 6, 4, 2), np.int16))
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, tmp_path / "in", tmp_path / "out")
    message = str(input_error_of(caught.value))
    assert "4 problems" in message
    assert "fmri.nii.gz' has 4 axes (6x6x4x3)" in message
    assert "nan.nii' has values that are not finite" in message
    assert "cut.nii.gz' can't be read" in message
    assert "dwi.nrrd' has 4 axes (6x6x4x2)" in message
    assert not (tmp_path / "out" / "predictions" / "predictions.csv").exists()


@pytest.mark.parametrize("damage", ["missing", "twice"])
def test_incomplete_series_is_refused(damage, tmp_path):
    write_series(tmp_path / "scan", corner(), series_affine(((1, 0, 0), (0, 1, 0))))
    by_place = sorted((tmp_path / "scan").iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    if damage == "missing":
        by_place[3].unlink()
    else:
        (tmp_path / "scan" / "copy.dcm").write_bytes(by_place[3].read_bytes())
    with pytest.raises(ValueError, match=r"slices 2\.5 to 5 mm apart" if damage == "missing" else r"slices 0 to 2\.5"):
        read_volume(tmp_path / "scan")


@pytest.fixture
def study(tmp_path):
    """Two volumes a split, bright where the mask is: label 2 inside, label 1 elsewhere; one of them has a table."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        mask = np.zeros((16, 20, 4), np.uint8)
        mask[3:8, 4:9, 1:3] = 2
        mask[12:, 15:, :] = 1
        image = rng.normal(100, 5, mask.shape) + 300 * (mask == 2)
        nib.save(nib.Nifti1Image(image.astype(np.float32), OBLIQUE), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask, OBLIQUE), tmp_path / f"{name}_mask.nii.gz")
    (tmp_path / "b.csv").write_text("slice,label,area\n0,0,\n1,1,0.1\n2,1,\n3,0,\n")
    masked = [{"image": f"{n}.nii.gz", "mask": f"{n}_mask.nii.gz"} for n in "acd"]
    content = {"training": [masked[0], {"image": "b.nii.gz", "slices": "b.csv"}], "validation": masked[1:]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def run_study(configs, study, *overlays, **overrides):
    settings = {
        "dataset_dir": str(study),
        "output_dir": str(study / "out"),
        "ckpt_dir": str(study / "out"),
        "spatial_size": [16, 16],
        "positive_labels": [2],
        "logging_file": False,
    } | overrides
    names = ["train", "slices", "mri", *overlays]
    config = [str(configs / f"{name}.json") for name in names]
    run("training", config_file=config, max_epochs=1, pretrained="random", **settings)
    run("evaluating", config_file=[*config, str(configs / "evaluate.json")], **settings)
    return json.loads((study / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("neighbours", [0, 2])
def test_volumes_train_are_evaluated_and_inferred_on(neighbours, configs, study):
    metrics = run_study(configs, study, neighbours=neighbours)
    assert metrics["images"] == 8
    assert metrics["volumes"] == 2
    rows = list(csv.DictReader((study / "out" / "metrics_per_volume.csv").open()))
    assert [Path(row["volume"]).name for row in rows] == ["c.nii.gz", "d.nii.gz"]
    assert metrics["dice_per_volume"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))
    names = [row["image"] for row in csv.DictReader((study / "out" / "metrics_per_image.csv").open())]
    assert Path(names[5]).name == "d_slice001"
    assert (study / "out" / "examples.png").exists()

    # what inference writes has the Dice that evaluation found
    names = ["inference", "slices", "mri"]
    run(
        "inferring",
        config_file=[str(configs / f"{name}.json") for name in names],
        images=[str(study / "c.nii.gz")],
        ckpt_dir=str(study / "out"),
        output_dir=str(study / "out"),
        spatial_size=[16, 16],
        neighbours=neighbours,
        threshold=0.4,
        logging_file=False,
    )
    written = nib.load(study / "out" / "predictions" / "c_probability.nii.gz").get_fdata()
    marked, truth = written >= 0.5, np.asarray(nib.load(study / "c_mask.nii.gz").dataobj) == 2
    dice = 2 * (marked & truth).sum() / (marked.sum() + truth.sum())
    assert float(rows[0]["dice"]) == pytest.approx(dice, abs=1e-6)


def test_an_area_of_one_step_labels_positive_voxels(configs: Path) -> None:
    """Of 100 pixels none to five are positive; less a quarter of that at both ends, 1.25 are and 96.25 are not."""
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("train", "recommended", "slices", "mri")])
    parser["warm_up"] = 1  # by default, a part of the epochs that the data set asks for
    loss = parser.get_parsed_content("loss")
    ranking = torch.linspace(1, 0, 100).view(1, 1, 10, 10)
    labels, known = area_ranked_labels(ranking, torch.tensor([0.05]), loss.area_step, unsure=loss.unsure)
    assert (labels.sum(), known.sum()) == (1, 1 + 96)


def test_masks_of_volumes_train_the_supervised_network(configs, study):
    content = json.loads((study / "dataset.json").read_text())
    content["training"] = content["training"][:1]
    (study / "dataset.json").write_text(json.dumps(content))
    assert 0 <= run_study(configs, study, "vgg_supervised")["dice_per_volume"] <= 1


def test_millilitres_are_right_or_not_there(configs, red_detector, tmp_path, caplog):
    """The bright box of 3 x 5 x 2 voxels of 10 ul: in every unit of NIfTI, and of DICOM without a pixel size."""
    folder = tmp_path / "in"
    folder.mkdir()
    for unit, size in (("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)):
        image = nib.Nifti1Image(corner(), np.diag([1 / size, 2 / size, 5 / size, 1]))
        image.header.set_xyzt_units(unit)
        nib.save(image, folder / f"{unit}.nii.gz")
    dicom(folder / "us.dcm", np.ascontiguousarray(corner()[..., -2].T), UltrasoundImageStorage, PixelSpacing=None)
    out = infer(configs, red_detector, folder, tmp_path / "out", spatial_size=[9, 12])
    rows = {Path(row["image"]).name: row["millilitres"] for row in csv.DictReader((out / "predictions.csv").open())}
    assert rows.pop("us.dcm") == ""
    assert {name: float(value) for name, value in rows.items()} == pytest.approx(dict.fromkeys(rows, 0.3))
    assert "us.dcm' has no PixelSpacing: no millilitres of it" in caplog.text
    for unit in ("micron", "meter"):  # the mask is in its file's own unit, in the same place
        mask, image = nib.load(out / f"{unit}_mask.nii.gz"), nib.load(folder / f"{unit}.nii.gz")
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.header.get_xyzt_units()[0] == unit


def test_a_volume_lost_during_inference_undoes_no_other(configs, red_detector, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcd":
        nib.save(nib.Nifti1Image(corner(), np.eye(4)), folder / f"{name}.nii")
    nib.save(nib.Nifti1Image(np.full((9, 12, 7), 3, np.int16), np.eye(4)), folder / "e.nii")  # nothing to scale
    original = slices.list_slices

    def list_and_damage(*args, **kwargs):
        items = original(*args, **kwargs)
        (folder / "b.nii").unlink()
        (folder / "c.nii").write_bytes((folder / "c.nii").read_bytes()[:500])
        return items

    monkeypatch.setattr(slices, "list_slices", list_and_damage)
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, folder, tmp_path / "out", spatial_size=[9, 12])
    message = str(input_error_of(caught.value))
    assert "3 problems in the images; all others are done" in message
    for name in "bce":
        assert f"{name}.nii" in message
    out = tmp_path / "out" / "predictions"
    rows = [Path(row["image"]).name for row in csv.DictReader((out / "predictions.csv").open())]
    assert rows == ["a.nii", "d.nii"]
    assert_lies_on(out / "d_mask.nii.gz", corner(), np.eye(4))
    assert not (out / "b_mask.nii.gz").exists()


def test_a_volume_that_cannot_be_mapped_or_written_undoes_no_other(configs, red_detector, tmp_path, monkeypatch):
    """Of four, the map of one slice of the second is not finite, and the third can't be drawn."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcd":
        nib.save(nib.Nifti1Image(corner(), np.eye(4)), folder / f"{name}.nii")
    checked = evaluator.check_finite

    def check(tensor, source):
        if source.endswith("b.nii"):
            raise InputError("the map is not finite")
        return checked(tensor, source)

    def draw(writer, *_):
        if (writer.output_dir / "c_mask.nii.gz").exists() and not (writer.output_dir / "d_mask.nii.gz").exists():
            raise ValueError("no paint is left")
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(evaluator, "check_finite", check)
    monkeypatch.setattr(VolumeWriter, "_picture", draw)
    with pytest.raises(RuntimeError) as caught:
        infer(configs, red_detector, folder, tmp_path / "out", spatial_size=[9, 12])
    first, *problems = str(input_error_of(caught.value)).split("\n  - ")
    assert "2 problems in the images; all others are done" in first
    assert problems == [
        f"'{folder / 'b.nii'}': the map is not finite",
        f"the volume '{folder / 'c.nii'}' can't be finished (no paint is left)",
    ]
    out = tmp_path / "out" / "predictions"
    rows = [Path(row["image"]).name for row in csv.DictReader((out / "predictions.csv").open())]
    assert rows == ["a.nii", "d.nii"]
    assert_lies_on(out / "d_mask.nii.gz", corner(), np.eye(4))


def test_a_single_image_across_the_patient_is_one_slice(configs, red_detector, tmp_path):
    """Sagittal, with the axial slices of the default setting."""
    (tmp_path / "in").mkdir()
    plane = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    array = corner()[..., -2:-1]
    path = tmp_path / "in" / "a.dcm"
    dicom(path, np.ascontiguousarray(array[..., 0].T), **plane, PixelSpacing=[1, 1], SliceThickness=5)
    out = infer(configs, red_detector, tmp_path / "in", tmp_path / "out", spatial_size=[9, 12])
    # columns go to the back (RAS -y), rows to the feet (-z), the normal, back x feet, to the patient's right (+x)
    affine = np.array([[0, 0, 5.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    assert_lies_on(out / "a_mask.nii.gz", array, affine)
