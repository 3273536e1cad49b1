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

"""Features of patches against scikit-image's own of the patch cut out; grids counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.boosting.patch_features import PatchFeatures
from scripts.demo.phantoms import draw_phantom
from scripts.runtime.errors import InputError
from skimage.color import rgb2gray, rgb2hed, rgb2lab
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

PROPERTIES = ["contrast", "dissimilarity", "homogeneity", "correlation"]


def phantom(height: int, width: int, seed: int = 0) -> np.ndarray:
    """H&E-like picture (3, H, W) in 0..1."""
    image = draw_phantom(np.random.default_rng(seed), (height, width))[0]
    return image.transpose(2, 0, 1) / 255.0


def by_scikit_image(image: np.ndarray, top: int, left: int, size: int) -> dict[str, float]:
    """The features of one patch, cut out of the image (3, H, W) before anything is computed but the patterns."""
    picture = image.transpose(1, 2, 0)
    box = np.s_[top : top + size, left : left + size]
    patch = picture[box]
    channels = np.concatenate([rgb2lab(patch), rgb2hed(patch)], axis=2)
    features = {}
    for index, name in enumerate(["lab_lightness", "lab_a", "lab_b", "haematoxylin", "eosin", "dab"]):
        features[f"{name}_mean"] = channels[..., index].mean()
        features[f"{name}_std"] = channels[..., index].std()
    grey = np.round(rgb2gray(picture) * 255).astype(np.uint8)
    codes = local_binary_pattern(grey, P=8, R=1, method="uniform")[box]
    features |= {f"lbp_{code}": (codes == code).mean() for code in range(10)}
    matrix = graycomatrix(grey[box] // 8, [1, 4], [0, np.pi / 2], levels=32, symmetric=True, normed=True)
    for name in PROPERTIES:
        one, four = graycoprops(matrix, name).mean(axis=1)
        features |= {f"{name}_1": one, f"{name}_4": four}
    return features


def compare(image: np.ndarray, features: PatchFeatures, patches: list[tuple[int, int]]) -> None:
    result = features(image)
    rows, columns = features.grid(*image.shape[1:])
    assert result.shape == (len(rows), len(columns), len(features.names))
    assert result.dtype == np.float32
    for row, column in patches:
        expected = by_scikit_image(image, rows[row], columns[column], features.patch_size)
        assert sorted(features.names) == sorted(expected)
        found = dict(zip(features.names, result[row, column].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=2e-6, abs=2e-6)


@pytest.mark.parametrize(
    ("height", "width", "patch_size", "stride", "last"),
    [
        (93, 71, 16, 4, (19, 13)),  # (93 - 16) / 4 = 19.25, (71 - 16) / 4 = 13.75
        (71, 93, 16, 5, (11, 15)),
        (101, 142, 64, 4, (9, 19)),
        (142, 101, 64, 5, (15, 7)),
        (16, 19, 16, 4, (0, 0)),
        (30, 31, 5, 7, (3, 3)),  # the smallest patch, and gaps between patches
    ],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_features_are_those_of_the_patch_cut_out(height, width, patch_size, stride, last, noisy) -> None:
    image = np.random.default_rng(0).random((3, height, width)) if noisy else phantom(height, width)
    row, column = last
    middle = (row // 2, column // 3)
    compare(image, PatchFeatures(patch_size, stride), [(0, 0), (0, column), (row, 0), last, middle])


def test_a_patch_of_one_colour_in_a_picture_of_many() -> None:
    image = phantom(80, 80)
    image[:, 30:60, 20:60] = np.array([0.9, 0.85, 0.95]).reshape(3, 1, 1)
    features = PatchFeatures(16, 4)
    result = dict(zip(features.names, features(image)[9, 8].tolist(), strict=True))  # 36..51, 32..47
    assert [result[f"{name}_{distance}"] for name in PROPERTIES for distance in (1, 4)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert result["lbp_8"] == 1  # no neighbour is darker
    spreads = [value for name, value in result.items() if name.endswith("_std")]
    assert spreads == pytest.approx([0] * 6, abs=1e-5)
    compare(image, features, [(0, 0)])


@pytest.mark.parametrize("colour", [(0.9, 0.85, 0.95), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.6, 0.3, 0.5)])
def test_image_of_one_colour(colour: tuple[float, float, float]) -> None:
    image = np.broadcast_to(np.array(colour).reshape(3, 1, 1), (3, 70, 90)).copy()
    compare(image, PatchFeatures(64, 4), [(0, 0), (1, 6)])
    result = PatchFeatures(64, 4)(image)
    assert not np.isnan(result).any()


def test_stripes_by_hand() -> None:
    """Columns of levels 3, 3, 5, 5: of neighbours one pair in two differs, by 2; at distance 4 none; down none."""
    values = np.array([3, 3, 5, 5]) * 8 + 4
    image = np.broadcast_to(np.resize(values, 45) / 255, (3, 45, 45)).copy()
    features = PatchFeatures(9, 4)
    result = features(image)
    found = {name: result[..., index] for index, name in enumerate(features.names)}
    # 8 pairs across, of which 4 differ by 2: contrast 4 * 4 / 8, averaged with 0 of the pairs down
    assert np.all(found["contrast_1"] == 1.0)
    assert np.all(found["dissimilarity_1"] == 0.5)
    assert found["homogeneity_1"] == pytest.approx(0.5 * (0.5 + 0.5 / 5 + 1))
    assert np.all(found["contrast_4"] == 0.0)
    assert found["correlation_4"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("height", "width", "patch_size", "stride", "rows", "columns", "last"),
    [
        (500, 500, 64, 4, 110, 110, (436, 436)),  # 12,100 patches
        (500, 333, 64, 4, 110, 68, (436, 268)),
        (64, 64, 64, 4, 1, 1, (0, 0)),
        (67, 68, 64, 4, 1, 2, (0, 4)),
        (100, 101, 16, 5, 17, 18, (80, 85)),
    ],
)
def test_grid_counted_by_hand(height, width, patch_size, stride, rows, columns, last) -> None:
    tops, lefts = PatchFeatures(patch_size, stride).grid(height, width)
    assert (len(tops), len(lefts)) == (rows, columns)
    assert (tops[0], lefts[0]) == (0, 0)
    assert (tops[-1], lefts[-1]) == last
    assert {*np.diff(tops), *np.diff(lefts)} <= {stride}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_array_has_the_same_features(dtype: type) -> None:
    image = phantom(40, 52).astype(np.float32)
    expected = PatchFeatures(16, 4)(image)
    for view in (image.astype(dtype), np.asfortranarray(image.astype(dtype))):
        assert np.array_equal(PatchFeatures(16, 4)(view), expected)


@pytest.mark.parametrize(("height", "width"), [(63, 64), (64, 63), (10, 500)])
def test_refuses_an_image_smaller_than_a_patch(height: int, width: int) -> None:
    message = f"{height} x {width} pixels is smaller than a patch of 64 x 64; give a larger spatial_size"
    with pytest.raises(InputError, match=message):
        PatchFeatures()(np.zeros((3, height, width)))
    with pytest.raises(InputError, match=message):
        PatchFeatures().grid(height, width)


@pytest.mark.parametrize("shape", [(1, 80, 80), (80, 80, 3), (80, 80), (1, 3, 80, 80)])
def test_refuses_a_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected an image of shape \(3, H, W\), got \(" + str(shape[0])):
        PatchFeatures()(np.zeros(shape))


@pytest.mark.parametrize("patch_size", [4, 0, -64, 64.0, True, "64", None])
def test_refuses_a_patch_size(patch_size: object) -> None:
    with pytest.raises(ValueError, match=f"patch_size must be a whole number of at least 5, got {patch_size!r}"):
        PatchFeatures(patch_size)


@pytest.mark.parametrize("stride", [0, -4, 4.0, True, "4", None])
def test_refuses_a_stride(stride: object) -> None:
    with pytest.raises(ValueError, match=f"stride must be a whole number of at least 1, got {stride!r}"):
        PatchFeatures(stride=stride)
