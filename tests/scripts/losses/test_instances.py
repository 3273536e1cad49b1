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

"""Superpixels' means against plain loops in double precision; masks made of whole superpixels."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.losses.instances import SuperpixelMean, SuperpixelMeand, instances_of, superpixel_means

# Two superpixels of 2x3: .1, .2, .6 and .4, .8, .9
MAP = torch.tensor([[[[0.1, 0.2, 0.4], [0.6, 0.8, 0.9]]]])
LABELS = torch.tensor([[[[0, 0, 1], [0, 1, 1]]]])


def by_loops(
    probability: np.ndarray, superpixels: np.ndarray, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    batch, maps, height, width = probability.shape
    count = 1 + max(superpixels.ravel().tolist())
    means, has = np.zeros((batch, maps, count)), np.zeros((batch, count), dtype=bool)
    for b in range(batch):
        for k in range(count):
            pixels = [
                (y, x)
                for y in range(height)
                for x in range(width)
                if superpixels[b, 0, y, x] == k and (valid is None or valid[b, 0, y, x] > 0)
            ]
            has[b, k] = bool(pixels)
            for m in range(maps):
                means[b, m, k] = sum(float(probability[b, m, y, x]) for y, x in pixels) / max(len(pixels), 1)
    return means, has


def some_superpixels(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (4, 3, 7, 9); 1, 3, 7 and 12 uneven superpixels; and which pixels are valid, but for one superpixel's."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, 3, 7, 9, generator=generator)
    numbers = torch.tensor([1, 3, 7, 12]).view(4, 1, 1, 1)
    superpixels = (torch.rand(4, 1, 7, 9, generator=generator) ** 2 * numbers).int()
    valid = torch.rand(4, 1, 7, 9, generator=generator) < 0.7
    valid[2] &= superpixels[2] != 4  # a superpixel wholly outside
    return maps, superpixels, valid


def test_means_by_hand() -> None:
    means, has = superpixel_means(MAP, LABELS)
    assert means.tolist() == [[pytest.approx([0.3, 0.7])]]
    assert has.tolist() == [[True, True]]
    valid = torch.tensor([[[[1, 1, 1], [0, 0, 1]]]])
    means, has = superpixel_means(MAP, LABELS, valid)
    assert means.tolist() == [[pytest.approx([0.15, 0.65])]]
    assert has.tolist() == [[True, True]]
    means, has = superpixel_means(MAP, LABELS, torch.tensor([[[[0, 0, 1], [0, 0, 0]]]]))
    assert means.tolist() == [[pytest.approx([0.0, 0.4])]]
    assert has.tolist() == [[False, True]]


@pytest.mark.parametrize("given", [False, True], ids=["all valid", "valid given"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_means_equal_loops(dtype: torch.dtype, given: bool) -> None:
    maps, superpixels, valid = some_superpixels(0)
    expected, expected_has = by_loops(maps.numpy(), superpixels.numpy(), valid.numpy() if given else None)
    means, has = superpixel_means(maps, superpixels.to(dtype), valid.to(dtype) if given else None)
    np.testing.assert_allclose(means.numpy(), expected, rtol=1e-6)
    assert has.dtype == torch.bool
    np.testing.assert_array_equal(has.numpy(), expected_has)
    assert not has[0, 1:].any()
    assert has[2, 4].item() != given


def test_gradient_of_a_mean_goes_to_its_valid_pixels_alike() -> None:
    maps, superpixels, valid = some_superpixels(1)
    maps.requires_grad_()
    superpixel_means(maps, superpixels, valid)[0].sum().backward()
    for b in range(4):
        for k in superpixels[b].unique():
            inside = ((superpixels[b] == k) & valid[b])[0]
            expected = torch.where(inside, 1 / inside.sum().clamp(min=1), 0.0).expand(3, -1, -1)
            torch.testing.assert_close(maps.grad[b][:, superpixels[b, 0] == k], expected[:, superpixels[b, 0] == k])


@pytest.mark.parametrize("garbage", [0.0, 1.0, math.nan])
def test_pixels_that_are_not_valid_have_no_influence(garbage: float) -> None:
    maps, superpixels, valid = some_superpixels(2)
    dirty = torch.where(valid, maps, garbage).requires_grad_()
    means, has = superpixel_means(dirty, superpixels, valid)
    expected, expected_has = superpixel_means(maps, superpixels, valid)
    torch.testing.assert_close(means, expected)
    assert torch.equal(has, expected_has)
    means.sum().backward()
    assert (dirty.grad[~valid.expand_as(dirty)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_means_in_float32_at_least(dtype: torch.dtype) -> None:
    maps, superpixels, _ = some_superpixels(3)
    maps = maps.to(dtype)
    means, _ = superpixel_means(maps, superpixels)
    assert means.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(means.numpy(), by_loops(maps.double().numpy(), superpixels.numpy())[0], rtol=1e-6)


def test_a_numbering_with_gaps_has_no_superpixel_in_them() -> None:
    means, has = superpixel_means(MAP, LABELS * 3)
    assert means.tolist() == [[pytest.approx([0.3, 0.0, 0.0, 0.7])]]
    assert has.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("garbage", [0.0, 1.0, math.nan])
def test_pixels_below_zero_belong_to_no_superpixel(garbage: float) -> None:
    """As if they weren't valid, whatever is; .1 alone is left of the first superpixel, .4 and .9 of the second."""
    labels = torch.tensor([[[[0, -1, 1], [-7, -1, 1]]]])
    dirty = torch.where(labels < 0, garbage, MAP).requires_grad_()
    means, has = superpixel_means(dirty, labels)
    assert means.tolist() == [[pytest.approx([0.1, 0.65])]]
    assert has.tolist() == [[True, True]]
    (gradient,) = torch.autograd.grad(means.sum(), dirty)
    assert gradient.flatten().tolist() == [1.0, 0.0, 0.5, 0.0, 0.0, 0.5]
    valid = torch.tensor([[[[0, 1, 0], [1, 1, 1]]]])
    means, has = superpixel_means(dirty, labels, valid)
    assert means.tolist() == [[pytest.approx([0.0, 0.9])]]
    assert has.tolist() == [[False, True]]
    maps, superpixels, valid = some_superpixels(5)
    actual = superpixel_means(maps, torch.where(valid, superpixels, -1))
    torch.testing.assert_close(actual, superpixel_means(maps, superpixels, valid))


# --- what pooling and constraints are given


def test_instances_are_pixels_or_superpixels() -> None:
    instances, mask = instances_of(MAP)
    assert instances is MAP
    assert mask is None
    valid = torch.tensor([[[[1.0, 1.0, 0.0], [0.5, 0.0, 1.0]]]])
    instances, mask = instances_of(MAP, valid=valid)
    assert instances is MAP
    assert mask.tolist() == [[[True, True, False], [True, False, True]]]
    for given, expected in ((None, [0.3, 0.7]), (valid, [0.3, 0.9])):
        instances, mask = instances_of(MAP, LABELS, given)
        assert instances.tolist() == [[pytest.approx(expected)]]
        assert mask.tolist() == [[True, True]]


@pytest.mark.parametrize("name", ["superpixels", "valid"])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5), (1, 1, 4, 5), (2, 1, 5, 4), (2, 1, 4, 6), (2, 1, 20)])
def test_refuses_sizes_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"expected {name} of shape (2, 1, 4, 5), got {shape}.")):
        instances_of(torch.full((2, 3, 4, 5), 0.5), **{name: torch.zeros(shape, dtype=torch.int)})


# --- the transform


@pytest.mark.parametrize("array", [False, True], ids=["tensor", "array"])
def test_every_pixel_gets_the_mean_of_its_superpixel(array: bool) -> None:
    img, labels = MAP[0].repeat(2, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1), LABELS[0]
    painted = SuperpixelMean()(img.numpy(), labels.numpy()) if array else SuperpixelMean()(img, labels)
    assert isinstance(painted, torch.Tensor)
    assert painted.shape == (2, 2, 3)
    assert painted[0].flatten().tolist() == pytest.approx([0.3, 0.3, 0.7, 0.3, 0.7, 0.7])
    assert painted[1].flatten().tolist() == pytest.approx([0.15, 0.15, 0.35, 0.15, 0.35, 0.35])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("labels", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_a_threshold_takes_or_leaves_whole_superpixels(labels: torch.dtype, dtype: torch.dtype) -> None:
    maps, superpixels, _ = some_superpixels(4)
    for k in range(4):
        painted = SuperpixelMean()(maps[k].to(dtype), superpixels[k].to(labels))
        assert painted.dtype == torch.float32
        means = by_loops(maps[k : k + 1].to(dtype).double().numpy(), superpixels[k : k + 1].numpy())[0][0]
        np.testing.assert_allclose(painted.numpy(), means[:, superpixels[k, 0].numpy()], rtol=1e-6)
        mask = painted > 0.5
        for label in superpixels[k].unique():
            inside = mask[:, superpixels[k, 0] == label]
            assert (inside.all(dim=1) | ~inside.any(dim=1)).all()


@pytest.mark.parametrize("garbage", [1.0, math.nan])
def test_pixels_of_no_superpixel_are_painted_0(garbage: float) -> None:
    labels = torch.tensor([[[0, -1, 1], [-1, -1, 1]]])
    painted = SuperpixelMean()(torch.where(labels < 0, garbage, MAP[0]).repeat(2, 1, 1), labels)
    assert painted.flatten().tolist() == pytest.approx([0.1, 0.0, 0.65, 0.0, 0.0, 0.65] * 2)


def test_keeps_what_is_known_of_an_image() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    img = MetaTensor(MAP[0], affine=affine, meta={"filename_or_obj": "a.png"})
    painted = SuperpixelMean()(img, MetaTensor(LABELS[0], meta={"filename_or_obj": "labels.npz"}))
    assert isinstance(painted, MetaTensor)
    assert painted.meta["filename_or_obj"] == "a.png"
    assert torch.equal(painted.affine, affine)
    assert painted.flatten().tolist() == pytest.approx([0.3, 0.3, 0.7, 0.3, 0.7, 0.7])
    assert type(SuperpixelMean()(MAP[0], MetaTensor(LABELS[0]))) is torch.Tensor


def test_dictionary_version_paints_its_keys_and_leaves_the_rest() -> None:
    data = {"pred": MetaTensor(MAP[0]), "other": MAP[0] / 2, "superpixels": LABELS[0], "name": "a"}
    painted = SuperpixelMeand(["pred", "other"])(data)
    assert painted["pred"].flatten().tolist() == pytest.approx([0.3, 0.3, 0.7, 0.3, 0.7, 0.7])
    assert painted["other"].flatten().tolist() == pytest.approx([0.15, 0.15, 0.35, 0.15, 0.35, 0.35])
    assert isinstance(painted["pred"], MetaTensor)
    assert painted["superpixels"] is data["superpixels"]
    assert painted["name"] == "a"
    assert torch.equal(data["pred"], MAP[0])  # not in place


def test_dictionary_version_by_other_keys() -> None:
    painted = SuperpixelMeand("pred", superpixel_key="regions")({"pred": MAP[0], "regions": LABELS[0]})
    assert painted["pred"].flatten().tolist() == pytest.approx([0.3, 0.3, 0.7, 0.3, 0.7, 0.7])
    with pytest.raises(KeyError, match="pred"):
        SuperpixelMeand("pred")({"superpixels": LABELS[0]})
    missing = {"superpixels": LABELS[0]}
    assert SuperpixelMeand("pred", allow_missing_keys=True)(missing) == missing
