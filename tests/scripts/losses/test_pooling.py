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

"""Every pooling against arithmetic on paper and float64 NumPy, where float32 and a careless formula may trip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.losses.cdws import mil_loss
from scripts.losses.pooling import (
    POOLINGS,
    Pooling,
    generalized_mean,
    log1mexp,
    log_generalized_mean,
    log_sum_exp,
    masked_mean,
    top_mean,
)

LN2, LN10 = math.log(2), math.log(10)
ALL_KINDS = list(POOLINGS)  # what any pooling must do is tried with all
SHARPENED = ["generalized_mean", "log_sum_exp", "log_sum_exp_of_scores"]  # those with an r
KINDS = ["generalized_mean", "log_sum_exp", "top_fraction", "mean", "max"]  # averages of probabilities
# Squares .04, .16, .16, .64: their mean is .25. Fourth powers sum to .4624: their mean is .1156 = .34^2.
MAP = torch.tensor([[[[0.2, 0.4], [0.4, 0.8]]]])


def random_maps(seed: int) -> torch.Tensor:
    """(5, 2, 3, 4) probabilities over twelve orders of magnitude, up to 0.99."""
    exponents = torch.rand(5, 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * torch.tensor(12.0)
    return 10.0 ** -(exponents * (torch.arange(1, 6).view(5, 1, 1, 1) / 5)) * 0.99


def bag(*p: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(1, 1, N) that takes a gradient."""
    return torch.tensor([[p]], dtype=dtype, requires_grad=True)


def in_double(kind: str, p: np.ndarray) -> float:
    """What `Pooling(kind)` should be by its definition."""
    p = p.astype(np.float64).ravel()
    return {
        "generalized_mean": lambda: np.mean(p**4) ** (1 / 4),
        "log_sum_exp": lambda: np.log1p(np.mean(np.expm1(4 * p))) / 4,
        "top_fraction": lambda: np.mean(sorted(p)[-max(1, math.ceil(len(p) / 10)) :]),
        "mean": p.mean,
        "max": p.max,
    }[kind]()


# --- each of them


@pytest.mark.parametrize(("r", "expected"), [(1, 0.45), (2, 0.5), (4, math.sqrt(0.34))])
def test_generalized_mean_by_hand(r: float, expected: float) -> None:
    assert generalized_mean(MAP, r).tolist() == [[pytest.approx(expected, rel=1e-6)]]


@pytest.mark.parametrize("r", [0.5, 1.0, 3.0, 4.0, 10.0])
def test_generalized_mean_equals_numpy_in_double_precision(r: float) -> None:
    maps = random_maps(0)
    powers = maps.double().numpy() ** r
    expected = powers.mean(axis=(2, 3)) ** (1 / r)
    np.testing.assert_allclose(generalized_mean(maps, r).numpy(), expected, rtol=2e-6)


def test_log_of_the_generalized_mean_survives_where_the_mean_of_powers_underflows() -> None:
    maps = torch.tensor([1e-20, 2e-20]).view(1, 1, 1, 2)  # p^4 = 1e-80, under the smallest float32
    expected = math.log(1e-20) + math.log((1 + 16) / 2) / 4
    assert log_generalized_mean(maps).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("p", "r", "expected"),
    [
        ((0.0, math.log(3) / 4), 4, LN2 / 4),  # exp(r p) are 1 and 3, of mean 2
        ((0.0, 0.0, 0.0, math.log(5)), 1, LN2),  # 1, 1, 1, 5
        ((math.log(2) / 10, math.log(4) / 10, math.log(9) / 10), 10, math.log(5) / 10),
        ((0.7, 0.7, 0.7), 4, 0.7),
    ],
)
def test_log_sum_exp_by_hand(p: tuple[float, ...], r: float, expected: float) -> None:
    assert log_sum_exp(bag(*p), r).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("r", [0.01, 1.0, 4.0, 10.0, 100.0])
def test_log_sum_exp_equals_numpy_in_double_precision(r: float) -> None:
    maps = random_maps(0)
    expected = np.log1p(np.expm1(r * maps.double().numpy()).mean(axis=(2, 3))) / r
    np.testing.assert_allclose(log_sum_exp(maps, r).numpy(), expected, rtol=2e-6)


def test_log_sum_exp_keeps_the_digits_of_small_probabilities() -> None:
    """Of 1e-7 and 3e-7 it is their mean plus r / 2 times their variance, 2e-14; float32 has 1 + 4e-7 as 1 + 3.6e-7."""
    assert log_sum_exp(bag(1e-7, 3e-7)).item() == pytest.approx(2e-7, rel=1e-6)
    assert log_sum_exp(bag(*[1e-7] * 1000)).item() == pytest.approx(1e-7, rel=1e-6)
    assert Pooling("log_sum_exp").log(bag(1e-12, 3e-12)).item() == pytest.approx(math.log(2e-12), rel=1e-6)


def test_log_sum_exp_of_a_large_sharpness_is_the_maximum_without_overflow() -> None:
    assert log_sum_exp(bag(0.1, 0.9), r=1000.0).item() == pytest.approx(0.9 - LN2 / 1000)  # exp(900) / 2


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, 0.8), (0.25, 0.8), (0.26, 0.6), (0.5, 0.6), (0.75, 1.6 / 3), (1.0, 0.45)]
)
def test_top_mean_by_hand(fraction: float, expected: float) -> None:
    assert top_mean(MAP, fraction).item() == pytest.approx(expected)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    ("fraction", "instances", "kept"),
    [
        (0.1, 30, 3),
        (0.1, 31, 4),
        (0.1, 10, 1),
        (0.1, 11, 2),
        (0.1, 1, 1),
        (1e-9, 50, 1),
        (0.07, 100, 7),  # 7.000000000000001 in binary
        (0.29, 100, 29),  # 28.999999999999996
        (1.0, 30, 30),
    ],
)
def test_top_mean_keeps_a_fraction_rounded_up(fraction: float, instances: int, kept: int, masked: bool) -> None:
    """Told by the gradient: 1 / kept at each of the largest. With a mask the fraction is of those that count."""
    p = torch.arange(1, 101, dtype=torch.float32).div(200).view(1, 1, 100)[..., : None if masked else instances]
    p = p.clone().requires_grad_()
    mask = torch.arange(100).view(1, 100) < instances if masked else None
    top_mean(p, fraction, mask).sum().backward()
    expected = [0.0] * (instances - kept) + [1 / kept] * kept + [0.0] * (p.shape[2] - instances)
    assert p.grad.flatten().tolist() == pytest.approx(expected)


def test_top_mean_of_ties_keeps_no_more_of_them() -> None:
    p = bag(0.5, 0.5, 0.5, 0.1)
    pooled = top_mean(p, 0.5)
    pooled.backward()
    assert pooled.item() == 0.5
    assert sorted(p.grad.flatten().tolist()) == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, math.sqrt(0.34)),
        ({"kind": "generalized_mean", "r": 2.0}, 0.5),
        ({"kind": "log_sum_exp", "r": 1000.0}, 0.8 - 2 * LN2 / 1000),
        ({"kind": "log_sum_exp", "r": 1e-3}, 0.45),  # + r / 2 times the variance of .0475
        ({"kind": "top_fraction"}, 0.8),
        ({"kind": "top_fraction", "top_fraction": 0.5}, 0.6),
        ({"kind": "top_fraction", "top_fraction": 1.0}, 0.45),
        ({"kind": "mean"}, 0.45),
        ({"kind": "max"}, 0.8),
    ],
)
def test_pooling_by_its_name(options: dict, expected: float) -> None:
    assert Pooling(**options)(MAP).item() == pytest.approx(expected, rel=1e-4)
    assert Pooling(**options).log(MAP).item() == pytest.approx(math.log(expected), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_map_of_each_image_is_pooled_by_itself(kind: str) -> None:
    maps = random_maps(3)
    expected = [[in_double(kind, one) for one in image] for image in maps.numpy()]
    np.testing.assert_allclose(Pooling(kind)(maps).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(Pooling(kind)(maps.flatten(2)).numpy(), expected, rtol=1e-5)  # any trailing axes


@pytest.mark.parametrize(("p", "expected"), [(1.0, -(2.0**-24)), (0.0, -30 * LN10)])
def test_log_of_the_generalized_mean_is_finite_at_both_ends(p: float, expected: float) -> None:
    assert log_generalized_mean(bag(p, p)).item() == pytest.approx(expected, rel=1e-6)


# --- what all of them have in common


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_lies_between_mean_and_maximum_and_grows_with_each_instance(kind: str) -> None:
    maps = random_maps(1).requires_grad_()
    pooled = Pooling(kind)(maps)
    assert (pooled >= maps.mean(dim=(2, 3)) * (1 - 1e-6)).all()
    assert (pooled <= maps.amax(dim=(2, 3)) * (1 + 1e-6)).all()
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    assert (gradient >= 0).all()
    with torch.no_grad():
        for y in range(3):
            for x in range(4):
                more = maps.clone()
                more[:, :, y, x] = more[:, :, y, x] * 0.5 + 0.5
                assert (Pooling(kind)(more) >= pooled * (1 - 1e-6)).all()


@pytest.mark.parametrize(("kind", "largest"), [("generalized_mean", 1000.0), ("log_sum_exp", 10000.0)])
def test_pooling_goes_from_mean_to_maximum_as_r_grows(kind: str, largest: float) -> None:
    maps = random_maps(1)
    least = 1.0 if kind == "generalized_mean" else 1e-4
    pooled = torch.stack([Pooling(kind, r)(maps) for r in (least, 2, 4, 8, largest)])
    assert (pooled.diff(dim=0) > 0).all()
    torch.testing.assert_close(pooled[0], maps.mean(dim=(2, 3)), rtol=1e-4, atol=0)
    # 12^(1/1000) = 1.0025, and ln(12) / 10000 = .00025
    torch.testing.assert_close(pooled[-1], maps.amax(dim=(2, 3)), rtol=0.003, atol=0.0003)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instances", [1, 10**6])
@pytest.mark.parametrize(
    ("p", "positive_loss", "negative_loss"),
    [
        (0.0, 30 * LN10, 0.0),  # the pooled probability is clamped to 1e-30
        (1e-45, 30 * LN10, 0.0),
        (1e-12, 12 * LN10, 1e-12),  # -log(1 - p) = p + p^2 / 2 + ...
        (0.5, LN2, LN2),
        (1.0, 2.0**-24, 24 * LN2),  # it is clamped to 1 - 2^-24
    ],
)
def test_bag_of_equal_instances(
    kind: str, p: float, positive_loss: float, negative_loss: float, instances: int
) -> None:
    maps = torch.full((1, 1, instances), p, requires_grad=True)
    losses = [mil_loss(maps, torch.tensor([label]), Pooling(kind)) for label in (1.0, 0.0)]
    # of the mean of 10^6 equal float32 some last digits may go
    assert [loss.item() for loss in losses] == pytest.approx([positive_loss, negative_loss], rel=1e-5, abs=1e-18)
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, maps)
        assert gradient.isfinite().all()
        if 1e-30 < p < 1:  # between the clamps the whole bag's slope is that of -log(p) or -log(1 - p)
            expected = -1 / p if loss is losses[0] else 1 / (1 - p)
            assert gradient.double().sum().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("label", [1.0, 0.0], ids=["positive", "negative"])
@pytest.mark.parametrize("maximum", [1.0, 1 - 2.0**-24, 0.5, 1e-12, 1e-30, 1e-45, 0.0])
def test_loss_and_gradient_are_finite_for_extremes_side_by_side(kind: str, label: float, maximum: float) -> None:
    p = bag(*[v for v in (0.0, 1e-45, 1e-30, 1e-12, 0.5, 1 - 2.0**-24, 1.0) if v <= maximum])
    loss = mil_loss(p, torch.tensor([label]), Pooling(kind))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_log_stays_where_that_of_the_complement_is_finite(kind: str) -> None:
    logs = torch.cat([Pooling(kind).log(bag(p, p)) for p in (0.0, 1e-45, 1e-20, 0.5, 1.0)]).flatten()
    assert logs.tolist() == pytest.approx([-30 * LN10, -30 * LN10, -20 * LN10, -LN2, -(2.0**-24)], rel=1e-6)
    assert log1mexp(logs).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_computes_in_float32_at_least(kind: str, dtype: torch.dtype) -> None:
    maps = torch.tensor([0.01, 0.02, 0.003, 0.0001], dtype=dtype).view(1, 1, 2, 2)  # 0.01^4 vanishes in float16
    expected = in_double(kind, maps.double().numpy())
    for mask in (None, torch.ones(1, 2, 2)):
        pooled = Pooling(kind)(maps, mask)
        assert pooled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert pooled.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 2e-6)


# --- masks

# Of five images of ten instances: how many count
COUNTED = (10, 1, 5, 3, 9)


def masked_bags(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(5, 2, 10) probabilities in 0.1..0.9, and (5, 10) which of them count."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(10, generator=generator) for _ in COUNTED])
    return torch.rand(5, 2, 10, generator=generator) * 0.8 + 0.1, order < torch.tensor(COUNTED).view(-1, 1)


def test_masked_mean_by_hand() -> None:
    maps = MAP.repeat(2, 1, 1, 1)
    assert masked_mean(maps).tolist() == [[pytest.approx(0.45)]] * 2
    mask = torch.tensor([[[True, False], [False, True]], [[True, True], [True, False]]])
    assert masked_mean(maps, mask).flatten().tolist() == pytest.approx(
        [0.5, 1 / 3]
    )  # (.2 + .8) / 2, (.2 + .4 + .4) / 3


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("dtype", "garbage"), [*((torch.bool, p) for p in (None, 0.0, 0.5, 1.0)), (torch.uint8, 0.5), (torch.float32, 0.5)]
)
def test_masked_image_equals_the_image_cut_down_to_what_counts(
    kind: str, dtype: torch.dtype, garbage: float | None
) -> None:
    """Images with masks of different size side by side, each against itself alone without a mask; so the gradients."""
    maps, mask = masked_bags(0)
    if garbage is not None:
        maps = torch.where(mask.unsqueeze(1), maps, garbage)
    maps.requires_grad_()
    pool = Pooling(kind, top_fraction=0.3)
    pooled = pool(maps.view(5, 2, 2, 5), mask.view(5, 2, 5).to(dtype))
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    for k in range(5):
        alone = maps[k : k + 1, :, mask[k]].detach().requires_grad_()
        expected = pool(alone)
        torch.testing.assert_close(pooled[k : k + 1], expected)
        (slope,) = torch.autograd.grad(expected.sum(), alone)
        torch.testing.assert_close(gradient[k][:, mask[k]], slope[0])
        assert (gradient[k][:, ~mask[k]] == 0).all()


@pytest.mark.parametrize("label", [1.0, 0.0], ids=["positive", "negative"])
@pytest.mark.parametrize("garbage", [0.0, 0.9, 1.0, math.nan])
@pytest.mark.parametrize(("kind", "r"), [*((kind, 4.0) for kind in ALL_KINDS), *((kind, 100.0) for kind in SHARPENED)])
def test_what_a_mask_hides_has_no_influence_however_far_from_the_rest(
    kind: str, r: float, garbage: float, label: float
) -> None:
    """(0.9 / 1e-12)^4 and exp(100 * 0.9) overflow float32: infinity times the 0 of the mask would be a NaN gradient."""
    p, alone = bag(1e-12, 3e-12, garbage), bag(1e-12, 3e-12)
    losses = [
        mil_loss(p, torch.tensor([label]), Pooling(kind, r), torch.tensor([[True, True, False]])),
        mil_loss(alone, torch.tensor([label]), Pooling(kind, r)),
    ]
    for loss in losses:
        loss.sum().backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    assert p.grad.flatten().tolist() == pytest.approx([*alone.grad.flatten().tolist(), 0.0], rel=1e-5)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_mask_of_ones_changes_nothing(kind: str) -> None:
    maps = random_maps(4)
    torch.testing.assert_close(Pooling(kind)(maps, torch.ones(5, 3, 4)), Pooling(kind)(maps))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_image_of_which_nothing_counts_has_nan_and_leaves_the_others_alone(kind: str) -> None:
    pooled = Pooling(kind)(MAP.repeat(2, 1, 1, 1), torch.tensor([[[0, 0], [0, 0]], [[1, 1], [1, 1]]]))
    assert pooled[0].isnan().all()
    torch.testing.assert_close(pooled[1:], Pooling(kind)(MAP))


# --- weights


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    ("kind", "fraction"), [*((kind, 0.3) for kind in ALL_KINDS), ("top_fraction", 0.05), ("top_fraction", 1.0)]
)
def test_a_weight_is_how_often_an_instance_counts(kind: str, masked: bool, fraction: float) -> None:
    """Five images of other weights, each against its instances repeated; so the gradients, added up."""
    maps, mask = masked_bags(1)
    maps.requires_grad_()
    weights = torch.randint(1, 9, (5, 10), generator=torch.Generator().manual_seed(2)).double()
    pool = Pooling(kind, top_fraction=fraction)
    pooled = pool(maps.view(5, 2, 2, 5), mask.view(5, 2, 5) if masked else None, weights.view(5, 2, 5))
    (gradient,) = torch.autograd.grad(pooled.sum(), maps)
    for k in range(5):
        counted = mask[k] if masked else torch.ones(10, dtype=torch.bool)
        alone = maps[k].detach()[:, counted].double().requires_grad_()
        expected = pool(alone.repeat_interleave(weights[k, counted].long(), dim=1)[None])
        torch.testing.assert_close(pooled[k : k + 1].double(), expected, rtol=1e-5, atol=0)
        if kind != "max":  # of equal maxima autograd may choose one or share
            (slope,) = torch.autograd.grad(expected.sum(), alone)
            torch.testing.assert_close(gradient[k][:, counted].double(), slope, rtol=1e-4, atol=1e-7)
        assert (gradient[k][:, ~counted] == 0).all()


def test_weighted_means_by_hand() -> None:
    """0.2 three times, 0.8 once: mean 1.4 / 4, squares .12 + .64 = .76 of mean .19; half of four are 0.8 and 0.2."""
    p, weights = torch.tensor([[[0.2, 0.8]]]), torch.tensor([[3, 1]])
    assert masked_mean(p, weights=weights).item() == pytest.approx(0.35)
    assert generalized_mean(p, 2.0, weights=weights).item() == pytest.approx(math.sqrt(0.19))
    assert top_mean(p, 0.5, weights=weights).item() == pytest.approx(0.5)
    assert Pooling("max")(p, weights=weights).item() == pytest.approx(0.8)


# --- the rest


@pytest.mark.parametrize("x", [-1e-30, -1e-8, -1e-7, -1e-3, -0.5, -0.6931, -0.6932, -1.0, -20.0, -80.0])
def test_log1mexp_and_its_gradient_keep_their_digits(x: float) -> None:
    argument = torch.tensor(x, requires_grad=True)
    value = log1mexp(argument)
    value.backward()
    exact = argument.item()
    assert value.item() == pytest.approx(math.log1p(-math.exp(exact)) if x < -1 else math.log(-math.expm1(exact)))
    assert argument.grad.item() == pytest.approx(1 / math.expm1(-exact) * -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "median"},
            "pooling must be one of generalized_mean, log_sum_exp, log_sum_exp_of_scores, top_fraction, mean, max, "
            "got 'median'",
        ),
        *[({"r": r}, f"r must be a number above 0; got {r}") for r in (0.0, -4.0, math.nan, math.inf)],
        *[({"top_fraction": f}, f"top_fraction must be a number above 0; got {f}") for f in (0.0, -0.1, math.nan)],
        ({"top_fraction": 1.01}, "top_fraction must be above 0 and up to 1, got 1.01"),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pooling(**options)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_pooled_as_an_image_classifier_pools_them(masked: bool) -> None:
    """Scores log 3 and -log 3 with r = 1: the mean of 3 and 1/3 is 5/3, and sigmoid(log(5/3)) is 5/8."""
    p = torch.tensor([[[0.75, 0.25, 0.999]]] if masked else [[[0.75, 0.25]]])
    mask = torch.tensor([[True, True, False]]) if masked else None
    pooling = Pooling("log_sum_exp_of_scores", r=1.0)
    assert float(pooling(p, mask)) == pytest.approx(5 / 8, rel=1e-5)


def test_pooled_scores_are_finite_with_finite_gradients_at_the_ends() -> None:
    p = torch.tensor([[[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]], requires_grad=True)
    pooled = Pooling("log_sum_exp_of_scores", r=5.0).log(p)
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert p.grad.isfinite().all()
