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

"""The loss against arithmetic on paper, float64 NumPy and finite differences; pixels, superpixels, padding, ranks."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from monai.data import MetaTensor
from scripts.losses.cdws import CDWSLoss, mil_loss
from scripts.losses.constraints import AreaConstraint
from scripts.losses.pooling import Pooling
from scripts.networks import CDWSNet
from scripts.runtime.errors import InputError

LN2, LN10 = math.log(2), math.log(10)
POOLINGS = ["generalized_mean", "log_sum_exp", "top_fraction", "mean", "max"]
CONSTRAINTS = ["one_sided", "two_sided", "log_barrier", "none"]
# The loss is a sum of what the pooling and what the constraint makes: each of them once, beside one of the others.
KINDS = [(pool, "two_sided") for pool in POOLINGS]
KINDS += [("generalized_mean", constraint) for constraint in CONSTRAINTS if constraint != "two_sided"]
# Squares .04, .16, .16, .64: their mean is .25. Fourth powers sum to .4624: their mean is .1156 = .34^2.
MAP = torch.tensor([[[[0.2, 0.4], [0.4, 0.8]]]])
POSITIVE, NEGATIVE = torch.tensor([1.0]), torch.tensor([0.0])


def random_maps(seed: int) -> torch.Tensor:
    """(5, 2, 3, 4) probabilities over twelve orders of magnitude, up to 0.99."""
    exponents = torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * torch.tensor(12.0)
    return 10.0 ** -(exponents * (torch.arange(1, 6).view(5, 1, 1, 1) / 5)) * 0.99


def some_images(
    height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Two maps each of four images, their targets, superpixels and which pixels are valid.

    The areas are far below, far above, unknown, and none of a negative image; superpixels are some 5, of uneven sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(4, 2, height, width, generator=generator, dtype=dtype) * 0.5 + 0.25
    target = torch.tensor([[1, 0.2], [1, 0.85], [1, math.nan], [0, math.nan]], dtype=dtype)
    superpixels = (torch.rand(4, 1, height, width, generator=generator) ** 2 * 5).int()
    valid = torch.rand(4, 1, height, width, generator=generator) < 0.75
    return maps, target, superpixels, valid


def loss_and_gradient(loss: CDWSLoss, maps: torch.Tensor, *args: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    maps = maps.detach().clone().requires_grad_()
    value = loss(maps, *args)
    return value.detach(), torch.autograd.grad(value.sum(), maps)[0]


# --- MIL loss


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("instances", [1, 10**6])
@pytest.mark.parametrize(
    ("p", "positive_loss", "negative_loss"),
    [
        (0.0, 30 * LN10, 0.0),  # p is clamped to 1e-30
        (1e-12, 12 * LN10, 1e-12),  # -log(1 - p) = p + p^2 / 2 + ...
        (0.5, LN2, LN2),
        (1.0, 2.0**-24, 24 * LN2),  # p is clamped to 1 - 2^-24
    ],
)
def test_bag_of_equal_instances(
    p: float, positive_loss: float, negative_loss: float, instances: int, autocast: bool
) -> None:
    maps = torch.full((1, 1, 1, instances), p, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = [CDWSLoss([], 10.0)(maps, torch.tensor([[label, math.nan]])) for label in (1.0, 0.0)]
    assert [loss.item() for loss in losses] == pytest.approx([positive_loss, negative_loss], rel=2e-6, abs=1e-18)
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, maps)
        assert gradient.isfinite().all()


def test_one_instance_of_ten_million() -> None:
    maps = torch.zeros(1, 1, 1, 10**7)
    maps[..., 1234567] = 0.5
    maps.requires_grad_()
    pooled = 0.5 * 10**-1.75  # (0.5^4 / 10^7)^(1/4)
    positive, negative = mil_loss(maps, POSITIVE), mil_loss(maps, NEGATIVE)
    assert positive.item() == pytest.approx(LN2 + 1.75 * LN10, rel=1e-6)
    assert negative.item() == pytest.approx(-math.log(1 - pooled), rel=1e-6)
    (gradient,) = torch.autograd.grad(positive.sum(), maps)
    assert gradient[..., 1234567].item() == pytest.approx(-2.0)  # -1/p, from it alone
    assert gradient.count_nonzero() == 1


@pytest.mark.parametrize(("pool", "constraint"), KINDS)
@pytest.mark.parametrize("label", [1.0, 0.0], ids=["positive", "negative"])
@pytest.mark.parametrize("maximum", [1.0, 1 - 2.0**-24, 0.5, 1e-12, 1e-30, 1e-45, 0.0])
def test_loss_and_gradient_are_finite_for_extremes_side_by_side(
    label: float, maximum: float, pool: str, constraint: str
) -> None:
    values = [v for v in (0.0, 1e-45, 1e-30, 1e-12, 0.5, 1 - 2.0**-24, 1.0) if v <= maximum]
    loss = CDWSLoss([], 10.0, Pooling(pool), AreaConstraint(constraint))
    maps, target = torch.tensor(values).view(1, 1, 1, -1), torch.tensor([[label, 0.1]])
    for superpixels in (None, torch.arange(len(values)).div(2, rounding_mode="floor").view(1, 1, 1, -1)):
        value, gradient = loss_and_gradient(loss, maps, target, superpixels)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("r", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("label", [1.0, 0.0])
def test_mil_loss_and_gradient_equal_their_formulas_in_double_precision(r: float, label: float) -> None:
    maps = random_maps(2).requires_grad_()
    losses = mil_loss(maps, torch.full((5,), label), Pooling(r=r))
    losses.sum().backward()
    p = maps.detach().double().numpy()
    pooled = (p**r).mean(axis=(2, 3), keepdims=True) ** (1 / r)
    # d Y^ / dp_k = Y^ p_k^(r-1) / sum p^r
    slope = p ** (r - 1) / (p**r).sum(axis=(2, 3), keepdims=True)
    expected, gradient = (-np.log(pooled), -slope) if label else (-np.log1p(-pooled), pooled / (1 - pooled) * slope)
    np.testing.assert_allclose(losses.detach().numpy(), expected[..., 0, 0], rtol=1e-5)
    np.testing.assert_allclose(maps.grad.numpy(), gradient, rtol=1e-5, atol=1e-30)


def test_each_image_is_pooled_by_its_own_label() -> None:
    maps = MAP.repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1)
    losses = mil_loss(maps, torch.tensor([1, 0]), Pooling(r=2.0))
    assert losses.flatten().tolist() == pytest.approx([LN2, -math.log(0.75)])


@pytest.mark.parametrize(
    ("pool", "pooled"), [("log_sum_exp", math.log(5) / 4), ("top_fraction", 0.5), ("mean", 1 / 3), ("max", 0.5)]
)
def test_mil_loss_of_each_pooling_by_hand(pool: str, pooled: float) -> None:
    """Of the four instances the mask leaves three; log-sum-exp sees others, of exp(4 p) 2, 4 and 9."""
    p = [math.log(2) / 4, math.log(4) / 4, math.log(9) / 4] if pool == "log_sum_exp" else [0.2, 0.3, 0.5]
    maps, mask = torch.tensor([[[*p, 0.9]]] * 2), torch.tensor([[1, 1, 1, 0]] * 2)
    losses = mil_loss(maps, torch.tensor([1, 0]), Pooling(pool), mask)
    assert losses.flatten().tolist() == pytest.approx([-math.log(pooled), -math.log(1 - pooled)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_lose_nothing_more_in_the_loss(dtype: torch.dtype) -> None:
    maps = torch.tensor([0.01, 0.02, 0.003, 0.0001], dtype=dtype).view(1, 1, 2, 2)  # 0.01^4 vanishes in float16
    p = maps.double().numpy()
    assert mil_loss(maps, POSITIVE).item() == pytest.approx(-math.log((p**4).mean()) / 4, rel=1e-6)
    loss = CDWSLoss([], 10.0)(maps, torch.tensor([[1.0, 0.001]]))
    expected = -math.log((p**4).mean()) / 4 + 10 * (p.mean() - 0.001) ** 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("instances", ["pixels", "superpixels"])
@pytest.mark.parametrize(("pool", "constraint"), KINDS)
def test_autocast_and_half_precision_give_the_loss_of_float32(pool: str, constraint: str, instances: str) -> None:
    maps, target, superpixels, valid = some_images(5, 6)
    loss = CDWSLoss([2.0], 3.0, Pooling(pool), AreaConstraint(constraint))
    given = superpixels if instances == "superpixels" else None
    expected = loss(maps, target, given, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(maps, target, given, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for dtype in (torch.bfloat16, torch.float16):
        value = loss(maps.to(dtype), target, given, valid)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(maps.to(dtype).float(), target, given, valid))


# --- the sum

# Four maps of 2x2, fusion first. With r = 2 they pool to 1/2, 1/4, 1/2 and 4/5; their means are .45, .25, .25, .8.
MAPS = torch.tensor(
    [[[0.2, 0.4], [0.4, 0.8]], [[0.25, 0.25], [0.25, 0.25]], [[0.0, 0.0], [0.0, 1.0]], [[0.8, 0.8], [0.8, 0.8]]]
)
MIL_POSITIVE = [LN2, 2 * LN2, LN2, math.log(5 / 4)]
MIL_NEGATIVE = [LN2, math.log(4 / 3), LN2, math.log(5)]
# an area of .2 is exceeded by .25, .05, .05 and .6; eta is 3, 2.5, 5 and 10
AREA = [3 * 0.0625, 2.5 * 0.0025, 5 * 0.0025, 10 * 0.36]


def hand_loss(**kwargs: object) -> CDWSLoss:
    return CDWSLoss(side_area_weights=(2.5, 5.0, 10.0), fusion_area_weight=3.0, pool=Pooling(r=2.0), **kwargs)


def test_total_is_the_sum_over_maps_and_the_mean_over_images() -> None:
    maps = torch.stack([MAPS, MAPS, MAPS])
    target = torch.tensor([[1, 0.2], [0, math.nan], [1, math.nan]])
    expected = [sum(MIL_POSITIVE) + sum(AREA), sum(MIL_NEGATIVE), sum(MIL_POSITIVE)]
    assert hand_loss(reduction="none")(maps, target).tolist() == pytest.approx(expected, rel=1e-5)
    assert hand_loss()(maps, target).item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_terms_come_map_by_map() -> None:
    terms = hand_loss().terms(MAPS[None], torch.tensor([[1, 0.2]]))
    assert terms["mil"].tolist() == [pytest.approx(MIL_POSITIVE, rel=1e-5)]
    assert terms["area"].tolist() == [pytest.approx(AREA, rel=1e-5)]


def test_one_map_is_taken_as_the_fusion() -> None:
    loss = hand_loss()(MAPS[None, :1], torch.tensor([[1, 0.2]]))
    assert loss.item() == pytest.approx(MIL_POSITIVE[0] + AREA[0])


def test_a_scale_multiplies_all_area_weights() -> None:
    terms = hand_loss(area_weight_scale=0.5).terms(MAPS[None], torch.tensor([[1, 0.2]]))
    assert terms["area"].tolist() == [pytest.approx([value / 2 for value in AREA], rel=1e-5)]
    assert terms["mil"].tolist() == [pytest.approx(MIL_POSITIVE, rel=1e-5)]


def test_weights_of_zero_leave_the_mil_terms() -> None:
    loss = CDWSLoss((0.0, 0.0, 0.0), 0.0, Pooling(r=2.0))(MAPS[None], torch.tensor([[1, 0.2]]))
    assert loss.item() == pytest.approx(sum(MIL_POSITIVE), rel=1e-5)


def test_the_defaults_are_the_paper() -> None:
    terms = CDWSLoss().terms(MAPS[None], torch.tensor([[1, 0.2]]))
    expected = [10 * 0.0625, 2.5 * 0.0025, 5 * 0.0025, 10 * 0.36]
    assert terms["area"].tolist() == [pytest.approx(expected, rel=1e-5)]
    assert terms["mil"][0, 0].item() == pytest.approx(-math.log(0.34) / 2)  # r = 4


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [  # of a map of mean .45 and an area of .7
        (AreaConstraint("one_sided"), 0.0),
        (AreaConstraint("two_sided", tolerance=0.15), 0.01),
        (AreaConstraint("two_sided", tolerance=0.15, penalty="relative"), 0.01 / 0.49),
        # z .1 and -.4, of which the second is on the logarithm
        (AreaConstraint("log_barrier", tolerance=0.15, sharpness=2.0), 0.7 + LN2 - math.log(0.4) / 2),
        (AreaConstraint("none"), 0.0),
    ],
)
def test_constraint_and_its_options_reach_the_total(constraint: AreaConstraint, expected: float) -> None:
    loss = CDWSLoss([], 10.0, Pooling(r=2.0), constraint)
    assert loss.constraint is constraint  # which a schedule sharpens
    assert loss(MAP, torch.tensor([[1, 0.7]])).item() == pytest.approx(LN2 + 10 * expected, rel=1e-5)


def test_a_sharpness_set_later_changes_the_loss() -> None:
    """z is -.4 and .1: by t = 2 on the logarithm and the tangent, by t = 1 both on the tangent, z + 1."""
    loss = CDWSLoss([], 10.0, Pooling(r=2.0), AreaConstraint("log_barrier", tolerance=0.15, sharpness=2.0))
    loss.constraint.set_sharpness(1.0)
    assert loss(MAP, torch.tensor([[1, 0.7]])).item() == pytest.approx(LN2 + 10 * 1.7)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_an_unknown_area_gives_no_nan_to_the_other_images(constraint: str) -> None:
    loss = hand_loss(constraint=AreaConstraint(constraint))
    value, gradient = loss_and_gradient(loss, torch.stack([MAPS, MAPS]), torch.tensor([[1, math.nan], [1, 0.2]]))
    _, alone = loss_and_gradient(loss, MAPS[None], torch.tensor([[1, 0.2]]))
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1], alone[0] / 2)


def test_a_better_prediction_has_a_lower_loss() -> None:
    """From the wrong answer to the right one, for a positive image of which a quarter is cancer and a negative one."""
    right = torch.zeros(2, 1, 8, 8)
    right[0, 0, :4, :4] = 1.0
    target = torch.tensor([[1, 0.25], [0, math.nan]])
    blends = [right * t + (1 - right) * (1 - t) for t in (0.1, 0.3, 0.6, 0.8, 0.95)]
    losses = torch.stack([CDWSLoss([], reduction="none")(blend, target) for blend in blends])
    assert (losses[:, 1].diff() < 0).all()
    assert (losses.sum(dim=1).diff() < 0).all()


@pytest.mark.parametrize(("area", "eta"), [(0.1, 10.0), (0.1, 2.5), (0.4, 10.0), (0.03, 5.0)])
def test_crisp_mask_settles_where_mil_pull_and_area_push_balance(area: float, eta: float) -> None:
    """-log(v) / 4 + eta (v - a)^2 is least at v = (a + sqrt(a^2 + 1 / (2 eta))) / 2: tried on 999 masks."""
    pixels = torch.arange(1, 1000)
    masks = (torch.arange(1000) < pixels[:, None]).float().view(999, 1, 1, 1000)
    target = torch.tensor([[1.0, area]]).expand(999, 2)
    losses = CDWSLoss([], eta, reduction="none")(masks, target)
    expected = (area + math.sqrt(area**2 + 1 / (2 * eta))) / 2
    assert pixels[losses.argmin()].item() / 1000 == pytest.approx(expected, abs=0.0015)


# --- gradients


@pytest.mark.parametrize("given", ["pixels", "valid pixels", "superpixels", "valid superpixels"])
@pytest.mark.parametrize(
    ("pool", "constraint", "penalty"),
    [(*kinds, "absolute") for kinds in KINDS] + [("mean", constraint, "relative") for constraint in CONSTRAINTS[:3]],
)
def test_gradient_equals_finite_differences(pool: str, constraint: str, penalty: str, given: str) -> None:
    """Areas are far from the means, and no two instances alike: no kink is near."""
    maps, target, superpixels, valid = some_images(3, 4, dtype=torch.float64)
    loss = CDWSLoss([2.0], 3.0, Pooling(pool, top_fraction=0.3), AreaConstraint(constraint, penalty=penalty))
    superpixels = superpixels if "superpixels" in given else None
    valid = valid if "valid" in given else None
    assert torch.autograd.gradcheck(lambda p: loss(p, target, superpixels, valid), maps.requires_grad_())


# --- superpixels


@pytest.mark.parametrize(
    ("pool", "pooled"),
    [("generalized_mean", math.sqrt(0.34)), ("top_fraction", 0.8), ("mean", 0.5), ("max", 0.8)],
)
def test_superpixels_weigh_the_same_whatever_their_size(pool: str, pooled: float) -> None:
    """One of fifteen pixels of .2 and one of a single .8: v is .5, not .2375; and sqrt((.04 + .64) / 2) for r = 2."""
    maps, superpixels = torch.full((1, 1, 4, 4), 0.2), torch.zeros(1, 1, 4, 4, dtype=torch.int)
    maps[..., 3, 3], superpixels[..., 3, 3] = 0.8, 1
    loss = CDWSLoss([], 10.0, Pooling(pool, r=2.0), AreaConstraint("two_sided", tolerance=0.1))
    terms = loss.terms(maps, torch.tensor([[1, 0.3]]), superpixels)
    assert terms["mil"].item() == pytest.approx(-math.log(pooled))
    assert terms["area"].item() == pytest.approx(10 * 0.01)
    assert loss.terms(maps, torch.tensor([[0, math.nan]]), superpixels)["mil"].item() == pytest.approx(
        -math.log(1 - pooled)
    )
    # beside an image of more superpixels the same: those that it doesn't have count for nothing
    maps, superpixels = maps.repeat(2, 1, 1, 1), torch.cat([superpixels, torch.arange(16).view(1, 1, 4, 4)])
    terms = loss.terms(maps, torch.tensor([[1, 0.3], [1, 0.3]]), superpixels)
    assert terms["mil"][0].item() == pytest.approx(-math.log(pooled))
    assert terms["area"][0].item() == pytest.approx(10 * 0.01)


@pytest.mark.parametrize(("pool", "constraint"), KINDS)
def test_superpixels_of_one_pixel_are_pixels(pool: str, constraint: str) -> None:
    maps, target, _, valid = some_images(4, 5)
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(k)) for k in range(4)])
    superpixels = order.view(4, 1, 4, 5)
    loss = CDWSLoss([2.0], 3.0, Pooling(pool, top_fraction=0.3), AreaConstraint(constraint), reduction="none")
    for given in (None, valid):
        actual = loss_and_gradient(loss, maps, target, superpixels, given)
        torch.testing.assert_close(actual, loss_and_gradient(loss, maps, target, None, given))


def test_numbering_of_superpixels_has_no_meaning() -> None:
    maps, target, superpixels, valid = some_images(5, 6)
    renumbered = torch.tensor([4, 9, 0, 2, 7])[superpixels.long()].int()  # with gaps
    loss = CDWSLoss([2.0], 3.0)
    torch.testing.assert_close(loss(maps, target, renumbered, valid), loss(maps, target, superpixels, valid))


def test_takes_what_monai_hands_over() -> None:
    maps, target, superpixels, valid = some_images(5, 6)
    loss = CDWSLoss([2.0], 3.0)
    value = loss(maps, MetaTensor(target), MetaTensor(superpixels), MetaTensor(valid.to(torch.uint8)))
    assert value.item() == pytest.approx(loss(maps, target, superpixels, valid).item())


# --- views of an image


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.flip(2),
        lambda x: x.flip(3),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.rot90(2, (2, 3)),
        lambda x: x.transpose(2, 3),
    ],
    ids=["upside down", "mirrored", "by 90 degrees", "by 180 degrees", "transposed"],
)
@pytest.mark.parametrize("pool", POOLINGS)
def test_flipped_and_turned_images_have_the_loss_of_the_image(
    pool: str, turn: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    maps, target, superpixels, valid = some_images(5, 7)
    loss = CDWSLoss([2.0], 3.0, Pooling(pool), AreaConstraint("two_sided"), reduction="none")
    for labels, inside in itertools.product((None, superpixels), (None, valid)):
        value, gradient = loss_and_gradient(loss, maps, target, labels, inside)
        turned = [None if x is None else turn(x) for x in (labels, inside)]
        actual = loss_and_gradient(loss, turn(maps), target, *turned)
        torch.testing.assert_close(actual, (value, turn(gradient)))


@pytest.mark.parametrize("garbage", [0.0, 0.9, 1.0, math.nan])
@pytest.mark.parametrize("instances", ["pixels", "superpixels"])
@pytest.mark.parametrize(("pool", "constraint"), KINDS)
def test_padded_images_of_mixed_sizes_have_the_losses_of_the_images_by_themselves(
    pool: str, constraint: str, instances: str, garbage: float
) -> None:
    """Small probabilities (to 1e-12) beside the garbage; its superpixels are the image's, others and none."""
    sizes, offsets = [(5, 6), (1, 1), (7, 8), (3, 8)], [(1, 2), (6, 0), (0, 0), (2, 0)]
    loss = CDWSLoss([2.0], 3.0, Pooling(pool), AreaConstraint(constraint), reduction="none")
    generator = torch.Generator().manual_seed(0)
    maps = torch.full((4, 2, 7, 8), garbage)
    superpixels = torch.randint(-1, 12, (4, 1, 7, 8), generator=generator)
    valid = torch.zeros(4, 1, 7, 8, dtype=torch.uint8)
    target = torch.tensor([[1, 0.2], [1, 0.85], [1, math.nan], [0, math.nan]])
    for k, ((height, width), (top, left)) in enumerate(zip(sizes, offsets, strict=True)):
        rows, columns = slice(top, top + height), slice(left, left + width)
        maps[k, :, rows, columns] = torch.rand(2, height, width, generator=generator) * (1.0, 1e-6, 0.5, 1e-12)[k]
        superpixels[k, :, rows, columns] = torch.randint(0, 5, (1, height, width), generator=generator)
        valid[k, :, rows, columns] = 1
    labels = superpixels if instances == "superpixels" else None
    losses, gradient = loss_and_gradient(loss, maps, target, labels, valid)
    assert (gradient[~valid.bool().expand_as(maps)] == 0).all()
    for k, ((height, width), (top, left)) in enumerate(zip(sizes, offsets, strict=True)):
        crop = (slice(k, k + 1), slice(None), slice(top, top + height), slice(left, left + width))
        alone = loss_and_gradient(loss, maps[crop], target[k : k + 1], None if labels is None else labels[crop])
        torch.testing.assert_close((losses[k : k + 1], gradient[crop]), alone, rtol=1e-5, atol=1e-6)


# --- ranks

# Of four images each rank has two: the second has what its name says.
SHARES = {
    "negatives": [[1, 0.2], [1, 0.9], [0, math.nan], [0, math.nan]],
    "no area": [[1, 0.2], [1, 0.9], [1, math.nan], [1, math.nan]],
    "both": [[1, 0.2], [0, math.nan], [1, math.nan], [1, 0.9]],
}
CASES = list(itertools.product(["two_sided"], ["pixels", "superpixels"], SHARES))
CASES += [(constraint, "superpixels", "both") for constraint in CONSTRAINTS if constraint != "two_sided"]
WORKER = """
import sys
import torch
import torch.distributed as dist
from scripts.losses.constraints import AreaConstraint
from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt")
    network = CDWSNet(stages=1, fusion_weights=(1.0,))
    network.load_state_dict(given["network"])
    parallel = torch.nn.parallel.DistributedDataParallel(network)
    mine = slice(2 * rank, 2 * rank + 2)
    gradients = []
    for constraint, instances, share in given["cases"]:
        loss = CDWSLoss([2.0], 3.0, constraint=AreaConstraint(constraint))
        superpixels = given["superpixels"][mine] if instances == "superpixels" else None
        network.zero_grad()
        target = torch.tensor(given["shares"][share])[mine]
        loss(parallel(given["images"][mine]), target, superpixels, given["valid"][mine]).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    torch.save(gradients, f"{folder}/gradients{rank}.pt")
    dist.destroy_process_group()


torch.multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")  # imports once
"""


def test_two_ranks_have_the_gradient_of_the_whole_batch(tmp_path: Path, quick_python: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network = CDWSNet(stages=1, fusion_weights=(1.0,))
    with torch.no_grad():  # a side of zeros would keep the gradient from the trunk
        network.sides[0].weight.normal_(0, 0.1, generator=generator)
    images = torch.rand(4, 3, 8, 8, generator=generator)
    _, _, superpixels, valid = some_images(8, 8)
    given = {"network": network.state_dict(), "cases": CASES, "shares": SHARES, "images": images}
    torch.save({**given, "superpixels": superpixels, "valid": valid}, tmp_path / "given.pt")
    bundle = Path(scripts.__file__).parent.parent
    subprocess.run(
        [quick_python, "-c", WORKER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(bundle)},
        check=True,
        timeout=120,
    )
    ranks = [torch.load(tmp_path / f"gradients{rank}.pt") for rank in range(2)]

    for constraint, instances, share in CASES:
        loss = CDWSLoss([2.0], 3.0, constraint=AreaConstraint(constraint))
        network.zero_grad()
        given = superpixels if instances == "superpixels" else None
        loss(network(images), torch.tensor(SHARES[share]), given, valid).backward()
        expected = [parameter.grad for parameter in network.parameters()]
        assert expected[0].count_nonzero() > 0
        for gradients in (rank.pop(0) for rank in ranks):
            for actual, whole in zip(gradients, expected, strict=True):
                tolerance = 1e-5 * whole.abs().max().item() + 1e-9  # the last digits depend on the batch's size
                torch.testing.assert_close(actual, whole, rtol=1e-4, atol=tolerance)


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "sum"}, "must be 'mean' or 'none', got 'sum'"),
        ({"fusion_area_weight": -1.0}, "fusion_area_weight must be a number, 0 or more; got -1.0"),
        (
            {"side_area_weights": (1.0, -2.0)},
            r"side_area_weights must be a list of numbers, each 0 or more; got \(1.0, -2.0\)",
        ),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CDWSLoss(**options)


@pytest.mark.parametrize(
    ("maps", "target", "message"),
    [
        (3, (2, 2), r"expected 1 or 4 maps \(fusion, side1, side2, side3\), got 3"),
        (4, (2,), r"expected a target of shape \(2, 2\), got \(2,\)"),
        (4, (3, 2), r"expected a target of shape \(2, 2\), got \(3, 2\)"),
        (1, (2, 1), r"expected a target of shape \(2, 2\), got \(2, 1\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(maps: int, target: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CDWSLoss()(torch.full((2, maps, 4, 4), 0.5), torch.ones(target))


def test_refuses_superpixels_and_valid_of_another_size() -> None:
    maps, target = torch.full((2, 1, 4, 4), 0.5), torch.tensor([[1, 0.2], [0, math.nan]])
    with pytest.raises(ValueError, match=r"expected superpixels of shape \(2, 1, 4, 4\), got \(2, 1, 8, 8\)"):
        CDWSLoss()(maps, target, torch.zeros(2, 1, 8, 8, dtype=torch.int))
    with pytest.raises(ValueError, match=r"expected valid of shape \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        CDWSLoss()(maps, target, valid=torch.ones(2, 4, 4))


# --- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pool", POOLINGS)
def test_loss_on_a_gpu_equals_that_on_the_cpu(pool: str) -> None:
    """As a config makes it: the loss itself is never moved. Superpixels and valid may be on either."""
    maps = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[1.0, 0.2], [0.0, math.nan], [1.0, math.nan]])
    _, _, superpixels, valid = (x[:3] for x in some_images(8, 8))
    loss = CDWSLoss(pool=Pooling(pool), constraint=AreaConstraint("log_barrier"), reduction="none")
    for labels, inside in itertools.product((None, superpixels), (None, valid)):
        expected = loss(maps, target, labels, inside)
        moved = [None if x is None else x.cuda() for x in (labels, inside)]
        torch.testing.assert_close(loss(maps.cuda(), target.cuda(), labels, inside).cpu(), expected)
        torch.testing.assert_close(loss(maps.cuda(), target.cuda(), *moved).cpu(), expected)


@pytest.mark.parametrize("label", [2.0, -1.0, 0.5, math.nan])
def test_refuses_a_label_that_is_neither_0_nor_1(label: float) -> None:
    with pytest.raises(InputError, match="a label must be 0 or 1"):
        mil_loss(torch.full((2, 1, 2, 2), 0.5), torch.tensor([1.0, label]))
