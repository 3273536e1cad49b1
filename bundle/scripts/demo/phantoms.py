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

"""H&E-like phantoms: drawn histology whose cancer is known to the pixel.

A phantom is two maps of stain concentration, haematoxylin and eosin, that a virtual camera turns into RGB by the
Beer-Lambert law. Benign tissue (stroma, glands, lymphocytes) fills the whole frame; in a positive image, cancer has
grown into a region of it. Tissue, cancer and camera have random streams of their own, so the same generator state
draws the same image with and without its cancer: nothing outside the region tells the two classes apart.

Lengths are in pixels at scale 1, where a normal nucleus is 5 to 6 pixels across.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.color import rgb_from_hed

from scripts.runtime.errors import InputError

__all__ = ["AREA_RANGE", "draw_phantom", "draw_region"]

AREA_RANGE = (0.05, 0.70)  # part of a positive image that is cancer
SCALE_RANGE = (0.85, 1.2)  # magnification, from image to image
GLAND_SPACING = (38.0, 62.0)  # between centres of neighbouring benign glands
EPITHELIUM = (12.0, 19.0)  # height of the wall of a benign gland: basal nuclei, then cytoplasm and mucus
CANCER_SPACING = 11.5  # between nuclei of cancer: about their mean diameter, so they crowd and overlap
REGION_TOLERANCE = 0.005  # of the image: how far the region's area may be from the one asked for
STAMP_BLOCK = 4096  # cells drawn at once: bounds the memory on large images


class Cells(NamedTuple):
    """Elliptic cells, one array (N,) for each property; lengths in pixels, angle of the long axis from +x to +y."""

    y: np.ndarray
    x: np.ndarray
    major: np.ndarray
    minor: np.ndarray
    angle: np.ndarray
    dark: np.ndarray


class Glands(NamedTuple):
    """Benign glands, one array (N,) for each property: ellipses of unit area ratio whose outline wobbles."""

    y: np.ndarray
    x: np.ndarray
    radius: np.ndarray
    stretch: np.ndarray
    angle: np.ndarray
    wobble: np.ndarray
    phase: np.ndarray
    wall: np.ndarray


def _spline_weights(rng: np.random.Generator, length: int, knot_distance: float) -> np.ndarray:
    """Cubic B-spline weights (length, knots) of pixels on knots that start at a random offset."""
    position = np.arange(length) / knot_distance + rng.uniform(1, 2)
    distance = np.abs(position[:, None] - np.arange(int(position[-1]) + 3))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def _noise(rng: np.random.Generator, size: tuple[int, int], length: float) -> np.ndarray:
    """Smooth random field (H, W), mean 0 and variance 1 over fields, with features of about `length` pixels."""
    rows, columns = (_spline_weights(rng, n, length) for n in size)
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]))
    return rows @ knots @ columns.T * (315 / 151)  # 151/315 is the mean square of the cubic B-spline's weights


def _scatter(
    rng: np.random.Generator, size: tuple[int, int], spacing: float, jitter: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Points y, x (N,) on a hexagonal grid, moved by up to `jitter` spacings, to one spacing past the frame."""
    row_distance = spacing * np.sqrt(3) / 2
    row, column = np.mgrid[-1 : size[0] / row_distance + 2, -1 : size[1] / spacing + 2]
    shift = rng.uniform(0, 1, 2)
    y = (row - shift[0]) * row_distance
    x = (column - shift[1] + row % 2 / 2) * spacing
    moved = rng.uniform(-jitter, jitter, (2, *y.shape)) * spacing
    return (y + moved[0]).ravel(), (x + moved[1]).ravel()


def _at(field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values of a map (H, W) at points, those outside the frame taking the nearest pixel's."""
    row = np.clip(np.rint(y), 0, field.shape[0] - 1).astype(int)
    column = np.clip(np.rint(x), 0, field.shape[1] - 1).astype(int)
    return field[row, column]


def _pick(cells: NamedTuple, chosen: np.ndarray) -> NamedTuple:
    """The chosen ones (a mask or indices) of Cells or Glands."""
    return type(cells)(*(values[chosen] for values in cells))


def _stamp(size: tuple[int, int], cells: Cells, lobes: float = 0.0, rim: float = 0.0) -> np.ndarray:
    """Draw cells into a map (H, W) of density, 0 outside them; where they overlap the darkest wins.

    Args:
        size: of the map.
        cells: what to draw; those outside the frame are skipped.
        lobes: irregularity of the outline, 0 for an ellipse.
        rim: how much darker the membrane is than the middle, 0 to 1.
    """
    canvas = np.zeros(size, np.float32)
    for start in range(0, len(cells.y), STAMP_BLOCK):
        _stamp_block(canvas, _pick(cells, slice(start, start + STAMP_BLOCK)), lobes, rim)
    return canvas


def _stamp_block(canvas: np.ndarray, cells: Cells, lobes: float, rim: float) -> None:
    """Draw cells into the canvas (H, W), in place."""
    reach = int(np.ceil(cells.major.max() * (1 + lobes) + 1))
    offset = np.arange(-reach, reach + 1)
    y, x, major, minor, angle, dark = (values[:, None, None].astype(np.float32) for values in cells)
    row = np.rint(y).astype(int) + offset[:, None]
    column = np.rint(x).astype(int) + offset
    along = (column - x) * np.cos(angle) + (row - y) * np.sin(angle)
    across = (row - y) * np.cos(angle) - (column - x) * np.sin(angle)
    radius = np.hypot(along / major, across / minor)
    if lobes:
        turn = np.arctan2(across, along)
        radius = radius * (1 + lobes * np.cos(2 * turn + 7 * angle) * np.sin(turn + 5 * angle))
    cover = np.clip((1 - radius) * minor + 0.5, 0, 1)  # the edge is one pixel wide
    density = dark * cover * (1 - rim * np.clip(1 - radius, 0, 1))
    row, column = np.broadcast_arrays(row, column)
    seen = (row >= 0) & (row < canvas.shape[0]) & (column >= 0) & (column < canvas.shape[1]) & (cover > 0)
    np.maximum.at(canvas, (row[seen], column[seen]), density[seen])


def _step(distance: np.ndarray, softness: float = 0.8) -> np.ndarray:
    """Smooth step from 0 to 1 where a distance in pixels crosses 0."""
    return 1 / (1 + np.exp(-np.clip(distance / softness, -30, 30)))


def _plan_glands(rng: np.random.Generator, size: tuple[int, int], scale: float) -> Glands:
    """Where the benign glands are and how they are shaped; how many there are differs from image to image."""
    spacing = rng.uniform(*GLAND_SPACING) * scale
    y, x = _scatter(rng, size, spacing, jitter=0.16)
    n = len(y)
    radius = spacing * rng.uniform(0.34, 0.47, n)
    glands = Glands(
        y,
        x,
        radius,
        stretch=rng.uniform(1, 1.3, n),
        angle=rng.uniform(0, np.pi, n),
        wobble=rng.uniform(0, 0.07, n),
        phase=rng.uniform(0, 2 * np.pi, n),
        wall=np.minimum(rng.uniform(*EPITHELIUM) * scale, radius * rng.uniform(0.55, 0.8, n)),
    )
    return _pick(glands, rng.uniform(size=n) < rng.uniform(0.55, 1.0))


def _outline(glands: Glands, turn: np.ndarray) -> np.ndarray:
    """Radius of a gland in the direction `turn`, before stretching."""
    return glands.radius * (1 + glands.wobble * np.cos(3 * turn + glands.phase))


def _gland_depth(glands: Glands, size: tuple[int, int], far: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) inside the nearest gland's outline, down to -far outside, and that gland's wall (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    depth, wall = np.full(size, -far, np.float32), np.ones(size, np.float32)
    for i in range(len(glands.y)):
        gland = _pick(glands, i)
        reach = gland.stretch * (gland.radius * (1 + gland.wobble) + far)  # no point beyond is nearer than `far`
        top, left = max(int(gland.y - reach), 0), max(int(gland.x - reach), 0)
        window = np.s_[top : max(int(gland.y + reach) + 1, 0), left : max(int(gland.x + reach) + 1, 0)]
        dy, dx = y[window] - gland.y, x[window] - gland.x
        along = (dx * np.cos(gland.angle) + dy * np.sin(gland.angle)) / gland.stretch
        across = (dy * np.cos(gland.angle) - dx * np.sin(gland.angle)) * gland.stretch
        inside = _outline(gland, np.arctan2(across, along)) - np.hypot(along, across)
        wall[window] = np.where(inside > depth[window], gland.wall, wall[window])
        depth[window] = np.maximum(depth[window], inside)
    return depth, wall


def _line_up(
    rng: np.random.Generator, glands: Glands, depth: np.ndarray | float, spacing: float
) -> tuple[Glands, np.ndarray, np.ndarray, np.ndarray]:
    """Points at a depth under the outlines, `spacing` apart: each point's gland, y, x and outward direction (N,)."""
    number = np.maximum(2 * np.pi * (glands.radius - depth) / spacing, 1).astype(int)
    owner = np.repeat(np.arange(len(number)), number)
    order = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    turn = 2 * np.pi * (order + rng.uniform(-0.3, 0.3, len(owner))) / number[owner]
    gland = _pick(glands, owner)
    depth = np.broadcast_to(depth, len(number))[owner]
    from_centre = _outline(gland, turn) - depth
    along = from_centre * np.cos(turn) * gland.stretch
    across = from_centre * np.sin(turn) / gland.stretch
    x = gland.x + along * np.cos(gland.angle) - across * np.sin(gland.angle)
    y = gland.y + along * np.sin(gland.angle) + across * np.cos(gland.angle)
    return gland, y, x, np.arctan2(y - gland.y, x - gland.x)


def _gland_nuclei(rng: np.random.Generator, glands: Glands, scale: float) -> Cells:
    """Basal nuclei of the benign epithelium: regular, oval, upright; a second row where the epithelium is dense."""
    rows = []
    dense = _pick(glands, rng.uniform(size=len(glands.y)) < rng.uniform(0, 0.9))
    for row, depth in ((glands, 3.6), (dense, 6.4)):
        _, y, x, outward = _line_up(rng, row, depth * scale, 4.5 * scale)
        n = len(y)
        wander = rng.normal(0, 0.7 * scale, n)
        rows.append(
            Cells(
                y + wander * np.sin(outward),
                x + wander * np.cos(outward),
                major=scale * rng.uniform(2.9, 3.7, n),
                minor=scale * rng.uniform(1.9, 2.3, n),
                angle=outward + rng.normal(0, 0.2, n),
                dark=rng.uniform(0.85, 1.15, n),
            )
        )
    return Cells(*(np.concatenate(values) for values in zip(*rows, strict=True)))


def _goblets(rng: np.random.Generator, glands: Glands, scale: float) -> Cells:
    """Mucus-filled vacuoles between the nuclei and the lumen; some images have many, some none."""
    gland, y, x, outward = _line_up(
        rng, glands, np.minimum(7 * scale + 0.2 * glands.wall, 0.6 * glands.radius), 5.5 * scale
    )
    n = len(y)
    cells = Cells(
        y,
        x,
        major=np.minimum(scale * rng.uniform(3, 5.4, n), 0.25 * gland.radius),
        minor=scale * rng.uniform(2, 2.8, n),
        angle=outward,
        dark=rng.uniform(0.6, 1, n),
    )
    return _pick(cells, rng.uniform(size=n) < rng.uniform(0, 1.3))


def _lymphocytes(rng: np.random.Generator, size: tuple[int, int], scale: float) -> Cells:
    """Small, round, dark cells: here and there, and packed where a smooth field is high."""
    y, x = _scatter(rng, size, 5.6 * scale, jitter=0.3)
    crowd = _noise(rng, size, 22 * scale) + rng.uniform(-0.6, 0.4)
    chance = 0.05 + 0.85 * _step(_at(crowd, y, x) - 1.3, 0.15)
    n = len(y)
    radius = scale * rng.uniform(2.1, 2.7, n)
    cells = Cells(y, x, radius * rng.uniform(1, 1.12, n), radius, rng.uniform(0, np.pi, n), rng.uniform(1.1, 1.4, n))
    return _pick(cells, rng.uniform(size=n) < chance)


def _fibroblasts(rng: np.random.Generator, across: np.ndarray, scale: float) -> Cells:
    """Thin nuclei that lie along the fibres, whose cross coordinate is the map `across` (H, W)."""
    y, x = _scatter(rng, across.shape, 12 * scale, jitter=0.45)
    slope_y, slope_x = np.gradient(across)
    fibre = np.arctan2(_at(slope_y, y, x), _at(slope_x, y, x)) + np.pi / 2
    n = len(y)
    return Cells(
        y,
        x,
        major=scale * rng.uniform(3.2, 5, n),
        minor=scale * rng.uniform(1, 1.5, n),
        angle=fibre + rng.normal(0, 0.2, n),
        dark=rng.uniform(0.6, 0.95, n),
    )


def _fibres(rng: np.random.Generator, across: np.ndarray, scale: float) -> np.ndarray:
    """Collagen (H, W), 0 in a cleft to 1 in a bundle: noise drawn out along the lines where `across` is constant."""
    size = across.shape
    strands = rng.uniform(size=(256, 64))
    y, x = np.mgrid[: size[0], : size[1]]
    slant = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(slant) + y * np.sin(slant)
    position = (across / (1.8 * scale) + _noise(rng, size, 5 * scale), along / (16 * scale))
    return ndimage.map_coordinates(strands, position, order=1, mode="grid-wrap")


def _benign(rng: np.random.Generator, size: tuple[int, int], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin (H, W) of benign tissue: stroma with lymphocytes, and glands in it."""
    glands = _plan_glands(rng, size, scale)
    depth, wall = _gland_depth(glands, size, far=20 * scale)
    # Fibres run round the glands; smoothing keeps them from breaking where two glands are equally near.
    across = ndimage.gaussian_filter(depth, 5 * scale) + 6 * scale * _noise(rng, size, 20 * scale)
    fibres = _fibres(rng, across, scale)
    loose = _step(fibres - 0.22 - 0.16 * _noise(rng, size, 15 * scale), 0.08)
    cytoplasm = 1 + 0.2 * _noise(rng, size, 3 * scale)
    haematoxylin = 0.06 + 0.1 * fibres * loose
    eosin = (0.28 + 0.3 * fibres) * (0.3 + 0.7 * loose)

    in_stroma = _pick_outside(_fibroblasts(rng, across, scale), depth, 2 * scale)
    nuclei = _stamp(size, in_stroma)
    nuclei = np.maximum(nuclei, _stamp(size, _pick_outside(_lymphocytes(rng, size, scale), depth, 2.5 * scale)))

    gland, lumen = _step(depth), _step(depth - wall)
    mucus = ndimage.gaussian_filter(_stamp(size, _goblets(rng, glands, scale)), 0.7)
    pale = np.maximum(0.9 * mucus, lumen)
    epithelium_h, epithelium_e = 0.4 * cytoplasm * (1 - pale), 0.4 * cytoplasm * (1 - 0.95 * pale)
    haematoxylin = haematoxylin * (1 - gland) + epithelium_h * gland
    eosin = eosin * (1 - gland) + epithelium_e * gland
    nuclei = np.maximum(nuclei * (1 - gland), _stamp(size, _gland_nuclei(rng, glands, scale), rim=0.15))
    return _add_nuclei(rng, haematoxylin, eosin, nuclei)


def _pick_outside(cells: Cells, depth: np.ndarray, margin: float) -> Cells:
    """The cells whose centre is at least `margin` outside the glands."""
    return _pick(cells, _at(depth, cells.y, cells.x) < -margin)


def _add_nuclei(
    rng: np.random.Generator, haematoxylin: np.ndarray, eosin: np.ndarray, nuclei: np.ndarray, clumps: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Lay nuclei of some density over the tissue; their chromatin is mottled by `clumps`."""
    chromatin = 1 + clumps * _noise(rng, nuclei.shape, 1.5)
    cover = np.clip(nuclei * 2, 0, 1)
    return haematoxylin * (1 - cover) + 1.75 * nuclei * chromatin, eosin * (1 - 0.35 * cover)


def _cancer(rng: np.random.Generator, region: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin (H, W) of cancer: crowded nuclei of every size and direction, slits of broken glands."""
    size = region.shape
    inward = ndimage.distance_transform_edt(np.pad(region, 1, mode="edge"))[1:-1, 1:-1]
    # A slit is where one field passes zero while another, wider, is high; its rim keeps off the region's edge.
    slit = 1.8 - 9 * np.abs(_noise(rng, size, 15 * scale)) + 4 * np.minimum(_noise(rng, size, 24 * scale) - 0.2, 0)
    slit = np.minimum(slit, (inward - 8 * scale) / 2)
    lumen = _step(2 * slit)
    y, x = _scatter(rng, size, CANCER_SPACING * scale, jitter=0.42)
    n = len(y)
    radius = scale * np.clip(rng.lognormal(np.log(6.0), 0.25, n), 3.5, 10.0)
    stretch = rng.uniform(1, 1.35, n)
    nuclei = Cells(
        y, x, radius * stretch, radius / stretch, rng.uniform(0, np.pi, n), np.clip(rng.normal(1.25, 0.2, n), 0.8, 1.7)
    )
    nuclei = _pick(nuclei, (_at(inward, y, x) > 0.5 * radius) & (_at(slit, y, x) < -0.5))
    cytoplasm = 1 + 0.25 * _noise(rng, size, 4 * scale)
    density = _stamp(size, nuclei, lobes=0.2, rim=0.45)
    return _add_nuclei(rng, 0.5 * cytoplasm * (1 - lumen), 0.5 * cytoplasm * (1 - lumen), density, clumps=0.25)


def draw_region(rng: np.random.Generator, size: tuple[int, int], fraction: float) -> np.ndarray:
    """Draw one irregular solid region.

    Args:
        rng: source of randomness.
        size: height and width of the map.
        fraction: of the map that the region covers, in (0, 1).

    Returns:
        Mask (H, W), bool: connected, without holes, its area within half a per cent of the map (or a pixel) of the
        one asked for. It may be cut by the frame.
    """
    wanted = max(round(fraction * size[0] * size[1]), 1)
    tolerance = max(REGION_TOLERANCE * size[0] * size[1], 1)
    radius = np.sqrt(wanted / np.pi)
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    y, x = y - rng.uniform(0.15, 0.85) * size[0], x - rng.uniform(0.15, 0.85) * size[1]
    coarse, fine = ([_noise(rng, size, max(part * radius, 1)) for _ in "yx"] for part in (0.75, 0.3))
    for roughness in (1, 0.5, 0.25, 0):
        # Level sets of a distance in warped coordinates: strong warping may tear pieces off, none gives discs.
        dy, dx = (p + roughness * radius * (0.3 * c + 0.08 * f) for p, c, f in zip((y, x), coarse, fine, strict=True))
        region = _grow(np.hypot(dy, dx), wanted)
        if abs(int(region.sum()) - wanted) <= tolerance:
            break
    return region


def _grow(distance: np.ndarray, wanted: int) -> np.ndarray:
    """The connected, filled neighbourhood of the distance's minimum that comes nearest to `wanted` pixels."""
    seed = np.unravel_index(np.argmin(distance), distance.shape)
    levels = np.sort(distance, axis=None)
    best = np.zeros(distance.shape, bool)
    low, middle, high = 0, wanted - 1, len(levels) - 1
    while low <= high:
        labels, _ = ndimage.label(distance <= levels[middle])
        region = ndimage.binary_fill_holes(labels == labels[seed])
        area = int(region.sum())
        if abs(area - wanted) < abs(int(best.sum()) - wanted):
            best = region
        if area == wanted:
            break
        low, high = (middle + 1, high) if area < wanted else (low, middle - 1)
        middle = (low + high) // 2
    return best


def _photograph(rng: np.random.Generator, haematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """RGB image (H, W, 3), uint8, of stain concentrations (H, W), with the stain and camera of one laboratory."""
    stains = rgb_from_hed[:2] + rng.normal(0, 0.035, (2, 3))
    stains = np.clip(stains, 0.02, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    strength = rng.uniform((0.85, 0.8), (1.2, 1.35))
    size = haematoxylin.shape
    thickness = 1 + 0.05 * _noise(rng, size, 0.5 * max(size))
    concentration = np.stack((haematoxylin, eosin), axis=-1) * strength * thickness[..., None]
    lamp = rng.uniform(0.88, 1.0) * rng.uniform(0.93, 1.0, 3)
    light = lamp * np.exp(-(concentration + 0.03) @ stains)  # (H, W, 3), Beer-Lambert
    light *= 1 + 0.03 * _noise(rng, size, 0.7 * max(size))[..., None]
    light = ndimage.gaussian_filter(light, (rng.uniform(0.4, 0.75),) * 2 + (0,))
    light += rng.normal(0, rng.uniform(0.005, 0.014), light.shape)
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)


def draw_phantom(
    rng: np.random.Generator, size: tuple[int, int] = (128, 128), cancer: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one H&E-like image and its truth.

    Args:
        rng: source of randomness; the same state gives the same image, and with and without cancer the same tissue,
            stain and camera outside the cancer.
        size: height and width, at least 4 each.
        cancer: whether cancer has grown into the tissue.

    Returns:
        The image (H, W, 3), uint8 RGB, and the mask (H, W), bool, of the cancer, empty if there is none. The mask is
        one solid region of 5 to 70 % of the image; lumens inside it belong to it.

    Raises:
        InputError: if a side is under 4 pixels.
    """
    if min(size) < 4:
        raise InputError(f"a phantom needs at least 4 x 4 pixels, got size {tuple(size)}")
    tissue, growth, camera = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=3))
    scale = tissue.uniform(*SCALE_RANGE)
    stains = _benign(tissue, size, scale)
    mask = np.zeros(size, bool)
    if cancer:
        mask = draw_region(growth, size, growth.uniform(*AREA_RANGE))
        edge = ndimage.gaussian_filter(mask.astype(float), 0.8)
        stains = tuple(b * (1 - edge) + c * edge for b, c in zip(stains, _cancer(growth, mask, scale), strict=True))
    return _photograph(camera, *stains), mask
