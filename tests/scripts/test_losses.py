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

"""The loss against arithmetic on paper and float64 NumPy, where float32 and a careless formula are known to trip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.losses import CDWSLoss, area_loss, generalized_mean, log1mexp, log_generalized_mean, mil_loss

LN2, LN10 = math.log(2), math.log(10)
# Squares .04, .16, .16, .64: their mean is .25. Fourth powers sum to .4624: their mean is .1156 = .34^2.
MAP = torch.tensor([[[[0.2, 0.4], [0.4, 0.8]]]])
POSITIVE, NEGATIVE, UNKNOWN = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([math.nan])


def random_maps(seed: int) -> torch.Tensor:
    """(5, 2, 3, 4) probabilities over twelve orders of magnitude, up to 0.99."""
    exponents = torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * torch.tensor(12.0)
    return 10.0 ** -(exponents * (torch.arange(1, 6).view(5, 1, 1, 1) / 5)) * 0.99


@pytest.mark.parametrize(("r", "expected"), [(1, 0.45), (2, 0.5), (4, math.sqrt(0.34))])
def test_generalized_mean_by_hand(r: float, expected: float) -> None:
    assert generalized_mean(MAP, r).tolist() == [[pytest.approx(expected, rel=1e-6)]]


@pytest.mark.parametrize("r", [0.5, 1.0, 3.0, 4.0, 10.0])
def test_generalized_mean_equals_numpy_in_double_precision(r: float) -> None:
    maps = random_maps(0)
    powers = maps.double().numpy() ** r
    expected = powers.mean(axis=(2, 3)) ** (1 / r)
    np.testing.assert_allclose(generalized_mean(maps, r).numpy(), expected, rtol=2e-6)


def test_generalized_mean_lies_between_mean_and_maximum_and_grows_with_r() -> None:
    maps = random_maps(1)
    means = torch.stack([generalized_mean(maps, r) for r in (1, 2, 4, 8, 1000)])
    assert (means.diff(dim=0) > 0).all()
    torch.testing.assert_close(means[0], maps.mean(dim=(2, 3)))
    torch.testing.assert_close(means[-1], maps.amax(dim=(2, 3)), rtol=0.003, atol=0)  # 12^(1/1000) = 1.0025


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("instances", [1, 10**7])
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


@pytest.mark.parametrize("label", [POSITIVE, NEGATIVE], ids=["positive", "negative"])
@pytest.mark.parametrize("maximum", [1.0, 1 - 2.0**-24, 0.5, 1e-12, 1e-30, 1e-45, 0.0])
def test_loss_and_gradient_are_finite_for_extremes_side_by_side(label: torch.Tensor, maximum: float) -> None:
    values = [v for v in (0.0, 1e-45, 1e-30, 1e-12, 0.5, 1 - 2.0**-24, 1.0) if v <= maximum]
    maps = torch.tensor(values).view(1, 1, 1, -1).requires_grad_()
    loss = CDWSLoss([], 10.0)(maps, torch.tensor([[label.item(), 0.1]]))
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("r", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("label", [1.0, 0.0])
def test_mil_loss_and_gradient_equal_their_formulas_in_double_precision(r: float, label: float) -> None:
    maps = random_maps(2).requires_grad_()
    losses = mil_loss(maps, torch.full((5,), label), r)
    losses.sum().backward()
    p = maps.detach().double().numpy()
    pooled = (p**r).mean(axis=(2, 3), keepdims=True) ** (1 / r)
    # d Y^ / dp_k = Y^ p_k^(r-1) / sum p^r
    slope = p ** (r - 1) / (p**r).sum(axis=(2, 3), keepdims=True)
    expected, gradient = (-np.log(pooled), -slope) if label else (-np.log1p(-pooled), pooled / (1 - pooled) * slope)
    np.testing.assert_allclose(losses.detach().numpy(), expected[..., 0, 0], rtol=1e-5)
    np.testing.assert_allclose(maps.grad.numpy(), gradient, rtol=1e-5, atol=1e-30)


def test_each_image_is_pooled_by_its_own_label() -> None:
    losses = mil_loss(MAP.repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1), torch.tensor([1, 0]), r=2)
    assert losses.flatten().tolist() == pytest.approx([LN2, -math.log(0.75)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_lose_nothing_more_in_the_loss(dtype: torch.dtype) -> None:
    maps = torch.tensor([0.01, 0.02, 0.003, 0.0001], dtype=dtype).view(1, 1, 2, 2)  # 0.01^4 vanishes in float16
    p = maps.double().numpy()
    assert mil_loss(maps, POSITIVE).item() == pytest.approx(-math.log((p**4).mean()) / 4, rel=1e-6)
    assert area_loss(maps, POSITIVE, torch.tensor([0.001])).item() == pytest.approx((p.mean() - 0.001) ** 2, rel=1e-4)


def test_log_of_the_generalized_mean_survives_where_the_mean_of_powers_underflows() -> None:
    maps = torch.tensor([1e-20, 2e-20]).view(1, 1, 1, 2)  # p^4 = 1e-80, under the smallest float32
    expected = math.log(1e-20) + math.log((1 + 16) / 2) / 4
    assert log_generalized_mean(maps).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("x", [-1e-7, -1e-3, -0.5, -0.6931, -0.6932, -1.0, -20.0, -80.0])
def test_log1mexp_and_its_gradient_keep_their_digits(x: float) -> None:
    argument = torch.tensor(x, requires_grad=True)
    value = log1mexp(argument)
    value.backward()
    exact = argument.item()
    assert value.item() == pytest.approx(math.log1p(-math.exp(exact)) if x < -1 else math.log(-math.expm1(exact)))
    assert argument.grad.item() == pytest.approx(1 / math.expm1(-exact) * -1)


@pytest.mark.parametrize(
    ("label", "area", "expected"),
    [
        (1.0, 0.3, 0.0225),  # the mean of MAP is .45: (.45 - .3)^2
        (1.0, 0.05, 0.16),
        (1.0, 0.5, 0.0),  # a smaller map than the area is free
        (1.0, 1.0, 0.0),
        (0.0, 0.3, 0.0),
        (1.0, math.nan, 0.0),
        (0.0, math.nan, 0.0),
    ],
)
def test_area_loss_by_hand(label: float, area: float, expected: float) -> None:
    maps = MAP.clone().requires_grad_()
    loss = area_loss(maps, torch.tensor([label]), torch.tensor([area]))
    loss.sum().backward()
    assert loss.tolist() == [[pytest.approx(expected)]]
    slope = 2 * (0.45 - area) / 4 if expected else 0.0  # d/dp_k (v - a)^2 with v the mean of 4
    assert maps.grad.flatten().tolist() == pytest.approx([slope] * 4)


@pytest.mark.parametrize(
    ("label", "area", "expected", "slope"),
    [
        (1.0, 0.3, 0.01, 0.05),  # .45 is .1 above [.25, .35]: 2 * .1 / 4 a pixel
        (1.0, 0.7, 0.04, -0.1),  # and .2 below [.65, .75]
        (1.0, 0.42, 0.0, 0.0),
        (1.0, 0.48, 0.0, 0.0),
        (0.0, 0.3, 0.0, 0.0),
        (0.0, 0.7, 0.0, 0.0),
        (1.0, math.nan, 0.0, 0.0),
    ],
)
def test_two_sided_area_loss_by_hand(label: float, area: float, expected: float, slope: float) -> None:
    maps = MAP.clone().requires_grad_()
    loss = area_loss(maps, torch.tensor([label]), torch.tensor([area]), "two_sided", tolerance=0.05)
    loss.sum().backward()
    assert loss.tolist() == [[pytest.approx(expected, abs=1e-7)]]
    assert maps.grad.flatten().tolist() == pytest.approx([slope] * 4, abs=1e-6)


def test_two_sided_constraint_and_its_tolerance_reach_the_total() -> None:
    loss = CDWSLoss([], 10.0, r=2.0, constraint="two_sided", tolerance=0.15)
    assert loss(MAP, torch.tensor([[1, 0.7]])).item() == pytest.approx(LN2 + 10 * 0.01)
    with pytest.raises(ValueError, match="must be one of one_sided, two_sided, got 'barrier'"):
        area_loss(MAP, POSITIVE, UNKNOWN, "barrier")


def test_area_loss_takes_each_map_and_image_by_itself() -> None:
    maps = torch.tensor([[0.6, 0.2], [0.7, 0.5]]).view(2, 2, 1, 1).expand(2, 2, 3, 5)
    losses = area_loss(maps, torch.tensor([1, 1]), torch.tensor([0.4, 0.6]))
    assert losses.flatten().tolist() == pytest.approx([0.04, 0.0, 0.01, 0.0], abs=1e-7)


# Four maps of 2x2, fusion first. With r = 2 they pool to 1/2, 1/4, 1/2 and 4/5; their means are .45, .25, .25, .8.
MAPS = torch.tensor(
    [[[0.2, 0.4], [0.4, 0.8]], [[0.25, 0.25], [0.25, 0.25]], [[0.0, 0.0], [0.0, 1.0]], [[0.8, 0.8], [0.8, 0.8]]]
)
MIL_POSITIVE = [LN2, 2 * LN2, LN2, math.log(5 / 4)]
MIL_NEGATIVE = [LN2, math.log(4 / 3), LN2, math.log(5)]
# an area of .2 is exceeded by .25, .05, .05 and .6; eta is 3, 2.5, 5 and 10
AREA = [3 * 0.0625, 2.5 * 0.0025, 5 * 0.0025, 10 * 0.36]


def hand_loss(**kwargs: object) -> CDWSLoss:
    return CDWSLoss(side_area_weights=(2.5, 5.0, 10.0), fusion_area_weight=3.0, r=2.0, **kwargs)


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


def test_weights_of_zero_leave_the_mil_terms() -> None:
    loss = CDWSLoss((0.0, 0.0, 0.0), 0.0, r=2.0)(MAPS[None], torch.tensor([[1, 0.2]]))
    assert loss.item() == pytest.approx(sum(MIL_POSITIVE), rel=1e-5)


def test_the_defaults_are_the_paper() -> None:
    terms = CDWSLoss().terms(MAPS[None], torch.tensor([[1, 0.2]]))
    expected = [10 * 0.0625, 2.5 * 0.0025, 5 * 0.0025, 10 * 0.36]
    assert terms["area"].tolist() == [pytest.approx(expected, rel=1e-5)]
    assert terms["mil"][0, 0].item() == pytest.approx(-math.log(0.34) / 2)  # r = 4


def test_an_unknown_area_gives_no_nan_to_the_other_images() -> None:
    maps = torch.stack([MAPS, MAPS]).requires_grad_()
    hand_loss()(maps, torch.tensor([[1, math.nan], [1, 0.2]])).backward()
    alone = torch.stack([MAPS]).requires_grad_()
    hand_loss()(alone, torch.tensor([[1, 0.2]])).backward()
    assert maps.grad.isfinite().all()
    torch.testing.assert_close(maps.grad[1], alone.grad[0] / 2)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": "barrier"}, "constraint must be one of one_sided, two_sided, got 'barrier'"),
        ({"reduction": "sum"}, "must be 'mean' or 'none', got 'sum'"),
        ({"fusion_area_weight": -1.0}, r"got \[-1.0, 2.5, 5.0, 10.0\]"),
        ({"side_area_weights": (1.0, -2.0)}, r"got \[10.0, 1.0, -2.0\]"),
        *[({"r": r}, f"r > 0 and finite, got .* and {r}") for r in (0.0, -4.0, math.nan, math.inf)],
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loss_on_a_gpu_equals_that_on_the_cpu() -> None:
    """As a config makes it: the loss itself is never moved."""
    maps = torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[1.0, 0.2], [0.0, math.nan], [1.0, math.nan]])
    loss = CDWSLoss(reduction="none")
    torch.testing.assert_close(loss(maps.cuda(), target.cuda()).cpu(), loss(maps, target))
