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

"""Superpixels by what a partition must be, on phantoms, real pictures and flat ones; the cache by what it spares."""

from __future__ import annotations

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Invertd, RandFlipd, RandRotate90d, Resized, SpatialPadd
from PIL import Image
from scipy import ndimage
from scripts.data import superpixels
from scripts.data.superpixels import Superpixels, Superpixelsd
from scripts.demo.phantoms import draw_phantom

COLON = Path(__file__).resolve().parents[4] / "shared" / "data" / "colon" / "images"


def phantom(height: int, width: int, seed: int = 0) -> np.ndarray:
    """H&E-like picture (3, H, W) in 0..1."""
    image = draw_phantom(np.random.default_rng(seed), (height, width))[0]
    return image.transpose(2, 0, 1) / 255.0


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((3, height, width))


def flat(height: int, width: int) -> np.ndarray:
    return np.full((3, height, width), 0.5)


def number_in(labels: torch.Tensor) -> int:
    """K, after a check that the labels (1, H, W) are a partition into the connected regions 0..K-1."""
    assert labels.dtype == torch.int32
    array = np.asarray(labels)[0]
    values = np.unique(array)
    assert values.tolist() == list(range(len(values)))
    for value, box in enumerate(ndimage.find_objects(array + 1)):
        assert ndimage.label(array[box] == value)[1] == 1
    return len(values)


@pytest.fixture
def no_slic(monkeypatch):
    """A function that makes SLIC fail from then on."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("SLIC has run")

    return lambda: monkeypatch.setattr(superpixels, "slic", refuse)


@pytest.mark.parametrize(("height", "width", "expected"), [(500, 500, 900), (112, 112, 45), (300, 500, 540)])
def test_auto_makes_900_in_500_x_500_and_scales_with_the_area(height: int, width: int, expected: int) -> None:
    labels = Superpixels()(phantom(height, width))
    assert labels.shape == (1, height, width)
    assert number_in(labels) == pytest.approx(expected, rel=0.02)


@pytest.mark.skipif(not COLON.is_dir(), reason="there are no colon images beside the repository")
def test_auto_makes_900_on_real_images() -> None:
    for path in sorted(COLON.glob("train_*.png"))[::250]:
        image = np.asarray(Image.open(path).convert("RGB").resize((500, 500))).transpose(2, 0, 1) / 255.0
        assert number_in(Superpixels()(image)) == pytest.approx(900, rel=0.02)


@pytest.mark.parametrize(
    ("image", "n_segments", "expected"),
    [
        (phantom(90, 60), 1, 1),
        (phantom(90, 60), 7, 7),
        (phantom(90, 60), np.int64(83), 83),
        (flat(90, 60), 50, 50),
        (flat(40, 40), 5, 5),  # squares of 18 pixels, which are 2 x 2 only
        (flat(90, 60), "auto", 19),  # 900 * 5400 / 250000 = 19.4
        (noise(90, 60), 50, 50),
        (noise(4, 4), "auto", 1),
        (noise(4, 4), 5, 5),
        (noise(5, 7), 10**9, 35),  # a pixel each, which no two share
        (noise(1, 9), 3, 3),
        (noise(1, 1), "auto", 1),
    ],
)
def test_partition_into_the_number_asked_for(image: np.ndarray, n_segments: int | str, expected: int) -> None:
    labels = Superpixels(n_segments)(image)
    assert labels.shape == (1, *image.shape[1:])
    assert number_in(labels) == expected


def test_flat_area_is_cut_evenly() -> None:
    sizes = np.bincount(Superpixels(50)(flat(90, 60)).ravel())
    assert sizes.max() <= 2.5 * 90 * 60 / 50


@pytest.mark.parametrize("edge", [30, 35, 37])
@pytest.mark.parametrize("axis", [1, 2])
def test_no_superpixel_crosses_an_edge(edge: int, axis: int) -> None:
    image = np.full((3, 80, 80), 0.9)
    dark, light = np.split(image, [edge], axis)
    dark[:] = np.array([0.5, 0.2, 0.6]).reshape(3, 1, 1)  # a view of the image
    dark, light = np.split(np.asarray(Superpixels(40)(image)), [edge], axis)
    assert not set(dark.ravel()) & set(light.ravel())


def test_the_smallest_joins_its_like() -> None:
    image = np.empty((3, 40, 40))  # 2 x 2 seeds make four pieces, of which three may stay
    image[:, :16, :18] = 0.8
    image[:, :16, 18:] = 0.35  # smaller than the one below, and unlike
    image[:, 16:, :18] = 0.75
    image[:, 16:, 18:] = 0.1
    expected = np.repeat([[0, 1], [0, 2]], [16, 24], axis=0).repeat([18, 22], axis=1)
    labels = np.asarray(Superpixels(3)(image))[0]
    assert [len(np.unique(labels[expected == region])) for region in range(3)] == [1, 1, 1]
    assert len(np.unique(labels)) == 3


def test_compactness_makes_it_square() -> None:
    def boundary(compactness: float) -> int:
        labels = np.asarray(Superpixels(100, compactness)(phantom(120, 120)))[0]
        return int((np.diff(labels, axis=0) != 0).sum() + (np.diff(labels, axis=1) != 0).sum())

    assert boundary(1000.0) < 0.7 * boundary(1.0)
    assert boundary(1000.0) == pytest.approx(2 * 9 * 120, rel=0.2)  # a grid of 10 x 10 squares


@pytest.mark.parametrize("n_segments", [0, -3, 2.0, True, "many", "900", None, math.nan])
def test_refuses_a_number(n_segments: object) -> None:
    with pytest.raises(ValueError, match=f"n_segments must be .* got {n_segments!r}"):
        Superpixels(n_segments)


@pytest.mark.parametrize("compactness", [0, -1.0, math.inf, math.nan, True, "10", None])
def test_refuses_a_compactness(compactness: object) -> None:
    with pytest.raises(ValueError, match=f"compactness must be .* got {compactness!r}"):
        Superpixelsd("image", compactness=compactness)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (8, 8, 3), (8, 8), (1, 3, 8, 8), (3, 0, 8)])
def test_refuses_a_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(3, H, W\), got \(" + str(shape[0])):
        Superpixels()(np.zeros(shape))


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, math.nan, math.inf])
def test_refuses_values_outside_the_range(value: float) -> None:
    image = noise(8, 8)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"values must be in 0..1"):
        Superpixels()(image)


def test_rounding_may_leave_the_range() -> None:
    image = np.zeros((3, 8, 8))
    image[:, :, 4:] = 1
    assert torch.equal(Superpixels(4)(image * 1.0001 - 0.00001), Superpixels(4)(image))


def test_any_array_has_the_same_superpixels() -> None:
    image = phantom(60, 90)
    expected = Superpixels(20)(image)
    single = torch.tensor(image, dtype=torch.float32)
    tracked = MetaTensor(single, meta={"filename_or_obj": "a.png"})
    views = [single, image.astype(np.float32), np.asfortranarray(image), tracked]
    results = [Superpixels(20)(view) for view in views]
    assert all(torch.equal(torch.as_tensor(np.asarray(result)), expected) for result in results)
    assert [isinstance(result, MetaTensor) for result in results] == [False, False, False, True]
    assert results[-1].meta["filename_or_obj"] == "a.png"


def test_cache_spares_slic(tmp_path: Path, no_slic) -> None:
    cache = tmp_path / "new" / "cache"
    image = phantom(60, 90)
    made = Superpixels(19, 10.0, cache)(image)
    assert torch.equal(made, Superpixels(19, 10.0)(image))
    no_slic()
    assert torch.equal(Superpixels(19, 10, str(cache))(image), made)
    assert torch.equal(Superpixels(19, 10.0, cache)((image + 1).astype(np.float32) - 1), made)  # other arithmetic
    assert torch.equal(Superpixels("auto", 10.0, cache)(image), made)  # 900 * 5400 / 250000 = 19.4
    with pytest.raises(AssertionError, match="SLIC has run"):
        Superpixels(19, 10.0)(image)


@pytest.mark.parametrize("change", ["number", "compactness", "pixel", "shape", "version", "library"])
def test_cache_tells_apart(change: str, tmp_path: Path, monkeypatch) -> None:
    image, n_segments, compactness = phantom(60, 90), 20, 10.0
    Superpixels(n_segments, compactness, tmp_path)(image)
    if change == "number":
        n_segments = 21
    elif change == "compactness":
        compactness = 10.5
    elif change == "pixel":
        image[1, 30, 40] = 1 - image[1, 30, 40].round()
    elif change == "shape":  # the same bytes
        image = image.transpose(1, 2, 0).reshape(90, 60, 3).transpose(2, 0, 1)
    elif change == "version":
        monkeypatch.setattr(superpixels, "VERSION", superpixels.VERSION + 1)
    else:
        monkeypatch.setattr(superpixels.skimage, "__version__", "0.0")
    changed = Superpixels(n_segments, compactness, tmp_path)(image)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(changed, Superpixels(n_segments, compactness)(image))


def foreign(path: Path) -> None:
    """Put another image's whole entry in the place of this one."""
    folder = path.parent / "other"
    Superpixels(20, cache_dir=folder)(phantom(60, 90, seed=1))
    next(folder.iterdir()).replace(path)
    folder.rmdir()


def rewrite(path: Path, **changes: np.ndarray) -> None:
    """Keep the entry, but for some of its arrays."""
    with np.load(path) as entry:
        arrays = dict(entry) | changes
    np.savez_compressed(path, **arrays)


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"no archive at all" * 99),
    "one byte": flip_byte,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"labels": 1})),
    "no labels": lambda path: np.savez_compressed(path, other=np.zeros(3)),
    "another image": foreign,
    "another shape": lambda path: rewrite(path, labels=np.zeros((90, 60), np.int32)),
    "another type": lambda path: rewrite(path, labels=np.zeros((60, 90))),
    "labels below 0": lambda path: rewrite(path, labels=np.full((60, 90), -5, np.int32)),
    "labels without bound": lambda path: rewrite(path, labels=np.arange(5400, dtype=np.int32).reshape(60, 90) * 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_cache_makes_a_damaged_entry_again(damage: str, tmp_path: Path, no_slic, caplog) -> None:
    image = phantom(60, 90)
    made = Superpixels(20, cache_dir=tmp_path)(image)
    (path,) = tmp_path.iterdir()
    DAMAGE[damage](path)
    assert torch.equal(Superpixels(20, cache_dir=tmp_path)(image), made)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert path.name in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    no_slic()
    assert torch.equal(Superpixels(20, cache_dir=tmp_path)(image), made)


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("in the place of the folder")
    transform = Superpixels(20, cache_dir=tmp_path / "file")
    for seed in range(3):
        assert torch.equal(transform(phantom(60, 90, seed)), Superpixels(20)(phantom(60, 90, seed)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path / "file") in caplog.text


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(file, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(superpixels.np, "savez_compressed", full)
    assert number_in(Superpixels(20, cache_dir=tmp_path)(phantom(60, 90))) == 20
    assert list(tmp_path.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_threads_share_a_cache(tmp_path: Path, monkeypatch, caplog) -> None:
    images = [phantom(40, 40, seed) for seed in range(3)]
    expected = [Superpixels(9)(image) for image in images]
    meeting, save = threading.Barrier(2), np.savez_compressed

    def save_together(file, **arrays: np.ndarray) -> None:  # both have missed the entry, and write at once
        save(file, **arrays)
        meeting.wait(timeout=30)

    monkeypatch.setattr(superpixels.np, "savez_compressed", save_together)
    transform = Superpixels(9, cache_dir=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        for image, labels in zip(images, expected, strict=True):
            assert all(torch.equal(result, labels) for result in pool.map(transform, [image, image]))
    assert len(list(tmp_path.iterdir())) == 3
    assert not caplog.records
    monkeypatch.undo()
    assert all(torch.equal(transform(image), labels) for image, labels in zip(images, expected, strict=True))


def test_pickled_transform_goes_on_with_its_cache(tmp_path: Path, no_slic) -> None:
    transform = Superpixelsd("image", n_segments=20, cache_dir=tmp_path)
    made = transform({"image": phantom(60, 90)})["superpixels"]
    no_slic()
    assert torch.equal(pickle.loads(pickle.dumps(transform))({"image": phantom(60, 90)})["superpixels"], made)


def test_dictionary_version() -> None:
    data = {"a": phantom(60, 90), "b": phantom(40, 40), "label": 1}
    result = Superpixelsd(["a", "b"], ["one", "two"], 12, 30.0)(data)
    assert torch.equal(result["one"], Superpixels(12, 30.0)(data["a"]))
    assert torch.equal(result["two"], Superpixels(12, 30.0)(data["b"]))
    assert list(data) == ["a", "b", "label"]
    assert result["label"] == 1
    assert "superpixels" in Superpixelsd("a")(data)


def test_dictionary_version_with_missing_keys() -> None:
    data = {"b": phantom(40, 40)}
    with pytest.raises(KeyError, match="Key `a`"):
        Superpixelsd(["a", "b"], ["one", "two"])(data)
    result = Superpixelsd(["a", "b"], ["one", "two"], allow_missing_keys=True)(data)
    assert list(result) == ["b", "two"]
    with pytest.raises(ValueError, match="one name per key"):
        Superpixelsd(["a", "b"])


def coloured(labels: torch.Tensor, image: torch.Tensor) -> np.ndarray:
    """Each superpixel in its mean colour (3, H, W)."""
    array = np.asarray(labels)[0].astype(int)
    return np.stack([ndimage.mean(channel, array, range(array.max() + 1))[array] for channel in np.asarray(image)])


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(
    ("augmentation", "by_numpy"),
    [
        (RandFlipd(["image", "superpixels"], prob=1.0, spatial_axis=0), lambda x: x[:, ::-1]),
        (RandFlipd(["image", "superpixels"], prob=1.0, spatial_axis=1), lambda x: x[:, :, ::-1]),
        (RandRotate90d(["image", "superpixels"], prob=1.0, max_k=1), lambda x: np.rot90(x, axes=(1, 2))),
    ],
)
def test_superpixels_turn_with_the_image(augmentation, by_numpy, tracked: bool) -> None:
    image = torch.tensor(phantom(60, 90))
    data = Superpixelsd("image", n_segments=20)({"image": MetaTensor(image) if tracked else image})
    expected = by_numpy(coloured(data["superpixels"], image))
    turned = augmentation(data)
    np.testing.assert_allclose(coloured(turned["superpixels"], turned["image"]), expected)
    np.testing.assert_array_equal(np.asarray(turned["superpixels"]), by_numpy(np.asarray(data["superpixels"])))
    number_in(turned["superpixels"])


@pytest.mark.parametrize("workers", [0, 2])
def test_padded_superpixels_are_collated(workers: int, tmp_path: Path) -> None:
    sizes = [(60, 90), (40, 40), (33, 64)]
    items = [{"image": MetaTensor(torch.tensor(phantom(*size)))} for size in sizes]
    pad = SpatialPadd("superpixels", (90, 90), value=-1)
    transforms = Compose([Superpixelsd("image", n_segments=20, cache_dir=tmp_path), pad])
    pictures = Compose([transforms, lambda data: {"superpixels": data["superpixels"]}])
    batch = next(iter(DataLoader(Dataset(items, pictures), batch_size=3, num_workers=workers)))["superpixels"]
    assert batch.shape == (3, 1, 90, 90)
    assert batch.dtype == torch.int32
    for padded, (height, width), item in zip(batch, sizes, items, strict=True):
        top, left = (90 - height) // 2, (90 - width) // 2
        assert (padded >= 0).sum() == height * width
        made = padded[:, top : top + height, left : left + width]
        assert torch.equal(made.as_tensor(), Superpixels(20)(item["image"]).as_tensor())


def test_superpixels_are_inverted_to_the_original_size() -> None:
    size, small = (60, 90), (30, 45)
    transforms = Compose(
        [
            Resized("image", spatial_size=small, mode="area"),
            Superpixelsd("image", n_segments=20),
            RandFlipd(["image", "superpixels"], prob=1.0, spatial_axis=1),
            RandRotate90d(["image", "superpixels"], prob=1.0, max_k=1),
        ]
    )
    data = transforms({"image": MetaTensor(torch.tensor(phantom(*size)))})
    assert data["superpixels"].shape == (1, 45, 30)
    before = np.rot90(np.asarray(data["superpixels"])[0], -1)[:, ::-1]
    inverted = Invertd("superpixels", transforms, "image", nearest_interp=True)(data)["superpixels"]
    assert inverted.shape == (1, *size)
    np.testing.assert_array_equal(np.asarray(inverted)[0], before.repeat(2, axis=0).repeat(2, axis=1))
