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

"""Volumes as weakly labelled slices: labels and areas, the contract of their data sets, and the pictures themselves."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.data.datalist import has_masks
from scripts.runtime.errors import InputError
from scripts.volumes import slices as slices_module
from scripts.volumes.datalist import list_slices, load_slice_datalist
from scripts.volumes.slices import LoadSlice, LoadSliced
from scripts.volumes.windows import ScalePercentiles

SHAPE = (5, 8, 4)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Volumes of 5 x 8 x 4 voxels: label 1 in 3 voxels of slice 1 and all of slice 3, label 2 in 1 voxel of slice 2."""
    rng = np.random.default_rng(0)
    for name in "ab":
        save(tmp_path / f"{name}.nii.gz", rng.integers(0, 900, SHAPE).astype(np.int16))
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, :3, 1] = 1
    mask[:, :, 3] = 1
    mask[4, 4, 2] = 2
    save(tmp_path / "mask.nii.gz", mask)
    (tmp_path / "table.csv").write_text("slice,label,area\n0,0,\n1,1,0.2\n2,1,\n3,0,0\n")
    return tmp_path


A = {"image": "a.nii.gz", "mask": "mask.nii.gz"}
B = {"image": "b.nii.gz", "slices": "table.csv"}


def load(folder: Path, *training: dict, **settings) -> dict:
    content = {"training": list(training) or [A], "validation": [B]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return load_slice_datalist(folder, **settings)


def test_labels_and_areas_of_a_mask(folder):
    items = load(folder, area_step=0.05)["training"]
    image, mask = str(folder / "a.nii.gz"), str(folder / "mask.nii.gz")
    # 3, 1 and 40 of 40 voxels are 0.075, 0.025 and 1, rounded up to twentieths
    assert items == [
        {"image": image, "mask": mask, "slice": 0, "label": 0},
        {"image": image, "mask": mask, "slice": 1, "label": 1, "area": 0.1},
        {"image": image, "mask": mask, "slice": 2, "label": 1, "area": 0.05},
        {"image": image, "mask": mask, "slice": 3, "label": 1, "area": 1.0},
    ]
    assert has_masks(items)


def test_chosen_values_are_positive(folder):
    assert [item["label"] for item in load(folder, positive_labels=[2])["training"]] == [0, 0, 1, 0]
    assert [item["label"] for item in load(folder, positive_labels=[1])["training"]] == [0, 1, 0, 1]


def test_other_axes_give_other_slices(folder):
    # B's table is of 4 slices
    (folder / "dataset.json").write_text(json.dumps({"training": [A]}))
    items = load_slice_datalist(folder, ["training"], axis=1, positive_labels=[2], area_step=0.1)["training"]
    assert [item["label"] for item in items] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert items[4]["area"] == 0.1  # 1 of 20 voxels


def test_slices_count_from_the_feet_whatever_the_order_of_the_file(folder):
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj)
    upside_down = np.diag([1.0, 1.0, -1.0, 1.0])
    save(folder / "a.nii.gz", np.ones(SHAPE, np.int16), upside_down)
    save(folder / "mask.nii.gz", mask, upside_down)
    assert [item["label"] for item in load(folder)["training"]] == [1, 1, 1, 0]


def test_a_table_gives_labels_and_areas(folder):
    items = load(folder)["validation"]
    assert [(i["slice"], i["label"], i.get("area")) for i in items] == [
        (0, 0, None),
        (1, 1, 0.2),
        (2, 1, None),
        (3, 0, None),
    ]
    assert not has_masks(items)


def test_a_range_leaves_slices_out(folder):
    items = load(folder, A | {"range": [0, 1]}, B | {"range": [1, 2]})["training"]
    assert [(Path(i["image"]).name[0], i["slice"]) for i in items] == [("a", 0), ("a", 1), ("b", 1), ("b", 2)]


def test_every_offender_is_named(folder):
    save(folder / "four.nii.gz", np.zeros((5, 8, 4, 2), np.int16))
    save(folder / "small.nii.gz", np.zeros((5, 8, 3), np.uint8))
    save(folder / "moved.nii.gz", np.zeros(SHAPE, np.uint8), np.diag([1.0, 1, 2, 1]))
    save(folder / "soft.nii.gz", np.full(SHAPE, 0.5, np.float32))
    save(folder / "thin.nii.gz", np.zeros((3, 8, 4), np.int16))
    (folder / "cut.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:60])
    (folder / "short.csv").write_text("slice,label,area\n1,1,0.2\n")
    (folder / "odd.csv").write_text("slice,label,area\n0,0,0.3\n1,2,\n2,1,30\n7,1,\n0,0,\n")
    (folder / "other.csv").write_text("slice,label\n0,0\n1,0\n2,1\n3,1\n")
    items = {
        "has 4 axes (5x8x4x2), must have 3": {"image": "four.nii.gz", "mask": "mask.nii.gz"},
        "can't be read": {"image": "cut.nii.gz", "mask": "mask.nii.gz"},
        "no such file": {"image": "none.nii.gz", "mask": "mask.nii.gz"},
        "needs a 'mask'": {"image": "a.nii.gz"},
        "mask.nii.gz' is the volume itself": {"image": "mask.nii.gz", "mask": "./mask.nii.gz"},
        "has 5x8x3 voxels, the volume 5x8x4": A | {"mask": "small.nii.gz"},
        "lies elsewhere": A | {"mask": "moved.nii.gz"},
        "other values than whole numbers": A | {"mask": "soft.nii.gz"},
        "its slices are 3x8, smaller than 4x4": {"image": "thin.nii.gz", "mask": "thin.nii.gz"},
        "lacks the slices 0, 2-3": B | {"slices": "short.csv"},
        "line 2 of": B | {"slices": "odd.csv"},
        "label is '2', must be 0 or 1": B | {"slices": "odd.csv"},
        "area is '30'": B | {"slices": "odd.csv"},
        "slice is '7', must be a whole number from 0 to 3": B | {"slices": "odd.csv"},
        "slice 0 is there twice": B | {"slices": "odd.csv"},
        "slice 1 has label 0 in": A | {"slices": "other.csv"},
        "range is [2, 9]": A | {"range": [2, 9]},
        "must be an object": "a.nii.gz",
    }
    for problem, item in items.items():
        with pytest.raises(InputError) as caught:
            load(folder, A, item)
        lines = [line for line in str(caught.value).splitlines() if "training[1]" in line]
        assert any(problem in line for line in lines), problem


def test_a_slice_that_is_listed_twice_says_one_thing(folder, caplog):
    load(folder, A, A | {"image": "./a.nii.gz", "range": [1, 2]})
    assert "Listed more than once in 'training', and counted so: a.nii.gz." in caplog.messages
    caplog.clear()
    load(folder, A | {"range": [0, 1]}, A | {"range": [2, 3]})
    assert not caplog.messages
    with pytest.raises(InputError) as caught:  # the mask marks slices 1, 2 and 3, with areas of 0.1, 0.05 and 1
        load(folder, A, B | {"image": "a.nii.gz"}, area_step=0.05)
    problems = [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]
    assert problems == [
        "image 'a.nii.gz', slice 1, has area 0.1 and area 0.2 in 'training'; keep one",
        "image 'a.nii.gz', slice 3, has label 1 and label 0 in 'training'; keep one",
    ]


def test_method_that_learns_from_masks_names_volumes_without(folder):
    with pytest.raises(InputError, match=r"validation\[0\] '.*b\.nii\.gz': has no mask, which this method learns from"):
        load(folder, pixel_labels=True)


def test_values_that_no_mask_has_are_named(folder):
    with pytest.raises(InputError, match=r"'training' has only negative images.*positive_labels is \[7\]"):
        load(folder, positive_labels=[7])


@pytest.mark.parametrize(("axis", "labels"), [(3, "all"), (2, [0]), (2, []), (2, "kidney")])
def test_settings_are_checked(axis, labels, folder):
    with pytest.raises(InputError, match="slice_axis" if axis == 3 else "positive_labels"):
        load(folder, axis=axis, positive_labels=labels)


def test_slices_are_the_right_way_up(folder):
    """Axial: the patient's right on the left, the front at the top; (C, W, H), as MONAI has pictures."""
    volume = np.zeros(SHAPE, np.float32)
    volume[4, 7, 2] = 1  # the rightmost, foremost voxel, in RAS
    save(folder / "a.nii.gz", volume)
    picture = LoadSlice(axis=2)(str(folder / "a.nii.gz"), 2)
    assert picture.shape == (3, 5, 8)
    assert torch.nonzero(picture[0]).tolist() == [[0, 0]]  # the first column of the first row
    sagittal = LoadSlice(axis=0)(str(folder / "a.nii.gz"), 4)
    assert torch.nonzero(sagittal[0]).tolist() == [[0, 1]]  # front on the left; head, which is slice 3, at the top


def test_neighbours_are_channels(folder):
    volume = np.broadcast_to(np.arange(4, dtype=np.float32), SHAPE)  # every slice has its number
    save(folder / "a.nii.gz", volume)
    channels = lambda neighbours, k: LoadSlice(2, neighbours)(str(folder / "a.nii.gz"), k)[:, 0, 0].tolist()  # noqa: E731
    assert channels(0, 2) == [2, 2, 2]
    assert channels(1, 2) == [1, 2, 3]
    assert channels(1, 0) == [0, 0, 1]
    assert channels(2, 3) == [1, 2, 3, 3, 3]


def test_a_volume_is_decoded_once_for_all_its_slices(folder, monkeypatch):
    read = []
    original = slices_module.read_volume
    monkeypatch.setattr(slices_module, "read_volume", lambda path: read.append(path) or original(path))
    transform = LoadSliced()
    for item in load(folder)["training"]:
        transform(item)
    names = [Path(path).name for path in read[3:]]  # after the check, which reads a, its mask, and b
    assert sorted(names) == ["a.nii.gz", "mask.nii.gz"]


def test_mask_of_a_slice_is_of_the_chosen_values(folder):
    transform = LoadSliced(positive_labels=[2])
    item = transform({"image": str(folder / "a.nii.gz"), "mask": str(folder / "mask.nii.gz"), "slice": 2})
    assert item["mask"].shape == (1, 5, 8)
    assert torch.nonzero(item["mask"][0]).tolist() == [[0, 3]]  # voxel (4, 4), both axes turned


def test_slices_to_infer_on_are_listed_in_order(folder):
    items = list_slices([str(folder / "b.nii.gz"), str(folder / "a.nii.gz")])
    assert [(Path(i["image"]).name[0], i["slice"], i["count"]) for i in items] == [
        *(("b", k, 4) for k in range(4)),
        *(("a", k, 4) for k in range(4)),
    ]


def test_percentiles_are_of_the_whole_volume(folder):
    """101 values 0, 10 ... 1000, a hundredth each: percentile p is 10 p. Slices don't get a scale each."""
    values = np.zeros((101, 4, 4), np.float32) + 10 * np.arange(101, dtype=np.float32)[:, None, None]
    save(folder / "a.nii.gz", values)
    scale = ScalePercentiles(10, 90)
    load_slice = LoadSlice(axis=0, intensity=scale)
    found = [float(load_slice(str(folder / "a.nii.gz"), k)[0, 0, 0]) for k in (0, 10, 30, 50, 90, 100)]
    np.testing.assert_allclose(found, [0, 0, 0.25, 0.5, 1, 1], atol=1e-6)  # 300 is a quarter of the way from 100 to 900


def test_a_volume_of_one_value_is_refused_by_its_name(folder):
    save(folder / "a.nii.gz", np.full(SHAPE, 5, np.int16))
    load_slice = LoadSlice(intensity=ScalePercentiles(1, 99))
    with pytest.raises(InputError, match=r"a\.nii\.gz' has the value 5 in all voxels"):
        load_slice(str(folder / "a.nii.gz"), 0)


def test_slices_too_small_for_the_network_are_refused_in_inference_as_in_training(folder):
    save(folder / "thin.nii.gz", np.zeros((3, 8, 4), np.int16))
    with pytest.raises(InputError, match=r"thin\.nii\.gz': its slices are 3x8, smaller than 4x4"):
        list_slices(str(folder / "thin.nii.gz"))


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
@pytest.mark.parametrize("shift", [0, 0.5])
def test_a_mask_lies_on_its_volume_in_any_unit(unit, shift, folder):
    """Voxels of 5 micrometres; half a voxel beside is another place, however small the number of millimetres."""
    size = {"mm": 0.005, "micron": 5.0, "meter": 5e-6}[unit]
    for name, moved in (("a", 0), ("mask", shift)):
        image = nib.load(folder / f"{name}.nii.gz")
        affine = np.diag([size] * 3 + [1.0])
        affine[0, 3] = moved * size
        image = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, folder / f"{name}.nii.gz")
    if shift:
        with pytest.raises(InputError, match="lies elsewhere in the patient"):
            load(folder)
    else:
        assert len(load(folder)["training"]) == 4


def test_volumes_that_leave_no_name_to_their_results_are_left_out_and_others_are_done(folder):
    (folder / "b").mkdir()
    whole = (folder / "b.nii.gz").read_bytes()
    long = "x" * 240
    for name in (f"{long}.nii.gz", "...nii.gz", "b/a.nii.gz", ".hidden.nii.gz"):
        (folder / name).write_bytes(whole)
    paths = [folder / name for name in ("a.nii.gz", f"{long}.nii.gz", "...nii.gz", "b/a.nii.gz", ".hidden.nii.gz")]
    items = list_slices([str(path) for path in [*paths, folder / "missing.nii"]])
    assert {item["image"] for item in items} == {str(paths[0])}
    problems = [
        "bytes too long for its results",
        "gives its results no name",
        f"would have the same name as those of '{paths[0]}'",
        "begins with a dot",
        "there is no such file",
    ]
    assert len(items.left_out) == len(problems)
    for problem in problems:
        assert any(problem in text for text in items.left_out), problem
    with pytest.raises(InputError, match="5 problems"):
        items.report_left_out()


def test_a_volume_whose_name_begins_with_a_dot_is_learned_from(folder):
    (folder / ".a.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())
    item = LoadSliced()(load(folder, A | {"image": ".a.nii.gz"})["training"][1])
    assert item["image"].shape == (3, 5, 8)
