"""The stage of a rendered photo: grain, light, painting, grounds, film.

In: a random generator and a size. Out: a scene to draw on, and the finished RGB photo.
Why: fruit and other things stand on the same grounds in the same light, so only the thing itself tells them apart.

A scene is a planar canvas in linear light. Its axes are right, down and to the eye; a photo is 2 wide, 0 in its middle.
Grain comes from tileable noise made once a process. Pixels see elementwise arithmetic only, no matrix product, so that
the number of threads never changes a byte.
"""

from __future__ import annotations

import colorsys
import functools
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Reals = NDArray[np.floating[Any]]
"""Array of float32; the wide type only spares NumPy's stubs a cast at every step."""
Colour = tuple[float, float, float]

_VOXELS = 64
_TEXELS = 512
_COARSE = 4


class Light(NamedTuple):
    """Light on a scene: directions as (3,) camera vectors, colours as (3, 1, 1)."""

    towards: Reals
    up: Reals
    front: Reals
    half: Reals  # between light and eye
    key: Reals
    sky: Reals
    bounce: Reals


class Scene(NamedTuple):
    """What a photo is drawn on: canvas, light, camera and the generator of all that varies."""

    size_px: int
    canvas: Reals  # (3, H, W), linear light
    light: Light
    rise: float  # sine of the camera's height over the ground
    rng: np.random.Generator


def to_linear(colour: Colour) -> Reals:
    """Turn sRGB 0-1 into linear light (3, 1, 1), with a gamma of 2."""
    return np.square(np.array(colour, np.float32)).reshape(3, 1, 1)


def smooth_step(value: Reals, low: float, high: float) -> Reals:
    """Rise from 0 at `low` to 1 at `high` without a kink; `low` above `high` falls."""
    share = np.clip((value - low) * (1.0 / (high - low)), 0.0, 1.0)
    result: Reals = share * share * (3.0 - 2.0 * share)
    return result


def mix(first: Reals, second: Reals, share: Reals) -> Reals:
    """Go from the first to the second by a share 0-1."""
    return first + (second - first) * share


def to_unit(vector: Sequence[float] | Reals) -> Reals:
    """Vector of length 1."""
    array = np.asarray(vector, np.float32)
    return array / np.float32(math.sqrt(float((array * array).sum())))


# ------------------------------------------------------------------------------------------------- grain


def _filtered(
    shape: tuple[int, ...], seed: int, gain: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]]
) -> Reals:
    """Tileable noise of mean 0 and deviation 1 with the spectrum `gain`."""
    white = np.fft.rfftn(np.random.default_rng(seed).standard_normal(shape))
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    spectrum = white * gain(list(np.meshgrid(*axes, indexing="ij")))
    spectrum.flat[0] = 0
    noise = np.fft.irfftn(spectrum, shape, axes=range(len(shape)))
    result: Reals = (noise / noise.std()).astype(np.float32)
    return result


def _band(low: float, high: float) -> Callable[[list[NDArray[np.float64]]], NDArray[np.float64]]:
    """Spectrum of grain between two wavelengths, in cells."""

    def gain(axes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        squares = sum(axis * axis for axis in axes)
        return np.exp(-squares * low * low) - np.exp(-squares * high * high)

    return gain


@functools.cache
def _volume(name: Literal["soft", "pores", "dots"]) -> Reals:
    shape = (_VOXELS,) * 3
    if name == "soft":
        return _filtered(shape, 1, lambda axes: 1.0 / (0.03 + np.sqrt(sum(a * a for a in axes))) ** 2.4).ravel()
    if name == "pores":
        return _filtered(shape, 2, _band(3.0, 5.0)).ravel()
    return _dots()


def _dots() -> Reals:
    """Round dots of equal size at random places, as a flat volume."""
    dots = np.zeros((_VOXELS,) * 3, np.float32)
    dots.flat[np.random.default_rng(3).choice(dots.size, 600, replace=False)] = 1.0
    axes = [np.fft.fftfreq(_VOXELS), np.fft.fftfreq(_VOXELS), np.fft.rfftfreq(_VOXELS)]
    squares = sum(a * a for a in np.meshgrid(*axes, indexing="ij"))
    blurred = np.fft.irfftn(
        np.fft.rfftn(dots) * np.exp(-squares * 2.0 * (math.pi * 1.1) ** 2), dots.shape, axes=(0, 1, 2)
    )
    result: Reals = np.clip(blurred / blurred.max() * 2.0, 0.0, 1.0).astype(np.float32).ravel()
    return result


@functools.cache
def _sheet(name: Literal["cloud", "fibre", "grit"]) -> Reals:
    shape = (_TEXELS, _TEXELS)
    if name == "cloud":
        return _filtered(shape, 4, lambda axes: 1.0 / (0.004 + np.hypot(axes[0], axes[1])) ** 1.7)
    if name == "fibre":
        return _filtered(shape, 5, lambda axes: 1.0 / (0.01 + np.hypot(axes[0], 14.0 * axes[1])) ** 1.3)
    return _filtered(shape, 6, _band(2.0, 5.0))


def solid_noise(
    name: Literal["soft", "pores", "dots"], place: Reals, scale: tuple[float, float, float], start: Reals, detail: float
) -> Reals:
    """Look the noise up at places (3, ..., h, w); `scale` is voxels a radius, `detail` pixels a radius.

    Voxels smaller than a pixel are taken as they are; larger ones are interpolated, on every second to fourth pixel.
    """
    lead = (3,) + (1,) * (place.ndim - 1)
    ratio = detail / max(scale)
    step = 1 if ratio < 1.0 else max(2, min(6, int(ratio)))
    voxels = place[..., ::step, ::step] * np.array(scale, np.float32).reshape(lead) + start.reshape(
        3, *start.shape[1:] or (1,) * (place.ndim - 1)
    )
    whole = voxels.astype(np.int32)
    near = (whole & (_VOXELS - 1)) * np.array([_VOXELS * _VOXELS, _VOXELS, 1], np.int32).reshape(lead)
    if step == 1:
        result: Reals = _volume(name).take(near[0] + near[1] + near[2])
        return result
    far = ((whole + 1) & (_VOXELS - 1)) * np.array([_VOXELS * _VOXELS, _VOXELS, 1], np.int32).reshape(lead)
    share, volume = voxels - whole.astype(np.float32), _volume(name)

    def edge(first: NDArray[np.int32], second: NDArray[np.int32]) -> Reals:
        side = first + second
        return mix(volume.take(side + near[2]), volume.take(side + far[2]), share[2])

    low, high = (
        mix(edge(near[0], near[1]), edge(near[0], far[1]), share[1]),
        mix(edge(far[0], near[1]), edge(far[0], far[1]), share[1]),
    )
    return enlarge(mix(low, high, share[0]), step, place.shape[-2:])


def between_texels(sheet: Reals, down: Reals, right: Reals) -> Reals:
    """Bilinear look-up in a tileable sheet at coordinates in texels."""
    flat, row, column = sheet.ravel(), down.astype(np.int32), right.astype(np.int32)
    rows, rows_on = ((r & (_TEXELS - 1)) * _TEXELS for r in (row, row + 1))
    columns, columns_on = (c & (_TEXELS - 1) for c in (column, column + 1))
    share = right - column.astype(np.float32)
    upper = mix(flat.take(rows + columns), flat.take(rows + columns_on), share)
    lower = mix(flat.take(rows_on + columns), flat.take(rows_on + columns_on), share)
    return mix(upper, lower, down - row.astype(np.float32))


def flat_noise(name: Literal["cloud", "fibre", "grit"], down: Reals, right: Reals, ratio: float) -> Reals:
    """Look a sheet up at coordinates (h, w) in texels; `ratio` is pixels a texel."""
    if ratio >= 1.0:
        step = max(2, min(6, int(ratio)))
        return enlarge(between_texels(_sheet(name), down[::step, ::step], right[::step, ::step]), step, down.shape)
    rows, columns = ((v.astype(np.int32) & (_TEXELS - 1)) for v in (down, right))
    return _sheet(name).ravel().take(rows * _TEXELS + columns)


def enlarge(coarse: Reals, step: int, shape: tuple[int, ...]) -> Reals:
    """Bilinear blow-up of (..., h, w) to `shape`; plain slices, so that every number of threads rounds alike."""
    for axis, wanted in ((-2, shape[0]), (-1, shape[1])):
        near = np.moveaxis(coarse, axis, 0)
        wide = np.empty((near.shape[0] * step, *near.shape[1:]), np.float32)
        slope = np.empty_like(near)
        np.subtract(near[1:], near[:-1], out=slope[:-1])
        slope[-1] = slope[-2] if len(slope) > 1 else 0.0
        for k in range(step):
            wide[k::step] = near + slope * (k / step)
        coarse = np.moveaxis(wide[:wanted], 0, axis)
    return coarse


def _coarse_axis(size_px: int) -> Reals:
    n = -(-size_px // _COARSE)
    return (np.arange(n, dtype=np.float32) * _COARSE + 0.5) * (2.0 / size_px) - 1.0


# ---------------------------------------------------------------------------------------------- painting


def open_window(
    scene: Scene, x: float, y: float, reach_x: float, reach_y: float
) -> tuple[tuple[slice, slice], Reals, Reals] | None:
    """Part of the canvas around a point, with coordinates from that point; None outside the photo."""
    n = scene.size_px
    first_x, last_x = (max(0, min(n, round((v + 1.0) * n / 2))) for v in (x - reach_x, x + reach_x))
    first_y, last_y = (max(0, min(n, round((v + 1.0) * n / 2))) for v in (y - reach_y, y + reach_y))
    if last_x - first_x < 1 or last_y - first_y < 1:
        return None
    right = (np.arange(first_x, last_x, dtype=np.float32) + 0.5) * (2.0 / n) - (1.0 + x)
    down = (np.arange(first_y, last_y, dtype=np.float32) + 0.5) * (2.0 / n) - (1.0 + y)
    return (slice(first_y, last_y), slice(first_x, last_x)), right[None, :], down[:, None]


def paint(scene: Scene, part: tuple[slice, slice], alpha: Reals, colour: Reals) -> None:
    """Lay a colour (3, h, w) over a part of the canvas."""
    under = scene.canvas[:, part[0], part[1]]
    under += alpha * (colour - under)


def shade(
    light: Light, normal: Reals, albedo: Reals, gloss: float | Reals, *, sharp: int = 5, sheer: float = 0.0
) -> Reals:
    """Light that leaves a surface: wrapped key, sky, ground, sky at grazing angles, highlight of power 2**sharp.

    References
    ----------
    Blinn (1977), Models of light reflection for computer synthesized pictures: the half vector of the highlight.
    """
    shape, width = normal.shape, normal.shape[-1]
    normal, albedo = normal.reshape(3, -1, width), albedo.reshape(3, -1, albedo.shape[-1])
    gloss = gloss if isinstance(gloss, float) else gloss.reshape(-1, width)
    towards = normal[0] * light.towards[0] + normal[1] * light.towards[1] + normal[2] * light.towards[2]
    upward = normal[1] * light.up[1] + normal[2] * light.up[2]
    key = np.maximum((towards + 0.12 + sheer) * (1.0 / (1.12 + sheer)), 0.0)
    open_sky = 0.5 + 0.5 * upward
    dusk = open_sky * (0.35 + 0.65 * smooth_step(upward, -1.0, 0.35))
    shine = np.maximum(normal[0] * light.half[0] + normal[1] * light.half[1] + normal[2] * light.half[2], 0.0)
    for _ in range(sharp):
        shine = shine * shine
    edge = np.square(np.square(1.0 - np.clip(normal[2], 0.0, 1.0)))
    lit = albedo * (light.key * key + light.sky * dusk + light.bounce * (1.0 - open_sky) * 0.6)
    lit += (light.key * shine * 0.55 + light.sky * (edge * open_sky * 0.7)) * gloss
    result: Reals = lit.reshape(shape)
    return result


def cast_shadow(
    scene: Scene, balls: Sequence[tuple[float, float, float]], *, strength: float = 0.62, thin: float = 1.0
) -> None:
    """Darken the ground, and what stands behind, under balls (x, y, radius) that rest on it."""
    light, axis = scene.light, _coarse_axis(scene.size_px)
    right, front, up = float(light.towards[0]), float(light.towards @ light.front), float(light.towards @ light.up)
    flat = math.hypot(right, front)
    along_x, along_y = right / flat, front / flat
    fall, level = np.zeros((len(axis), len(axis)), np.float32), math.sqrt(max(1.0 - scene.rise**2, 0.0))
    for x, y, radius in balls:
        dx = axis[None, :] - x
        dy = (axis[:, None] - (y + radius * level * 0.92)) * (1.0 / (scene.rise * thin))
        touch = 1.0 - np.sqrt(dx * dx + dy * dy) * (0.85 / radius)
        sx, sy = dx + right / up * radius, dy + front / up * radius
        along, across = (sx * along_x + sy * along_y) * up, sx * along_y - sy * along_x
        cast = 1.25 - np.sqrt(along * along + across * across) * (1.0 / radius)
        np.maximum(fall, np.maximum(smooth_step(touch, 0.0, 0.8), smooth_step(cast, 0.0, 0.75) * 0.75), out=fall)
    scene.canvas[...] *= 1.0 - strength * enlarge(fall, _COARSE, scene.canvas.shape[1:])


def paint_stroke(
    scene: Scene, points: Sequence[tuple[float, float]], widths: tuple[float, float], colour: Colour
) -> None:
    """Round stick along points, from one half width to the other."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    margin = max(widths) + 4.0 / scene.size_px
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    found = open_window(scene, x, y, (max(xs) - min(xs)) / 2 + margin, (max(ys) - min(ys)) / 2 + margin)
    if found is None:
        return
    part, right, down = found
    best = np.full((down.shape[0], right.shape[1]), 9.0, np.float32)
    lean_x, lean_y, n = np.zeros_like(best), np.zeros_like(best), len(points) - 1
    for i in range(n):
        ax, ay, bx, by = points[i][0] - x, points[i][1] - y, points[i + 1][0] - x, points[i + 1][1] - y
        ux, uy = bx - ax, by - ay
        share = np.clip(((right - ax) * ux + (down - ay) * uy) * (1.0 / max(ux * ux + uy * uy, 1e-9)), 0.0, 1.0)
        ex, ey = right - ax - share * ux, down - ay - share * uy
        width = widths[0] + (widths[1] - widths[0]) * (share + i) * (1.0 / n)
        far = np.sqrt(ex * ex + ey * ey) / width
        near = far < best
        best, lean_x, lean_y = (
            np.where(near, far, best),
            np.where(near, ex / width, lean_x),
            np.where(near, ey / width, lean_y),
        )
    alpha = np.clip((1.0 - best) * (min(widths) * scene.size_px / 2) + 0.6, 0.0, 1.0)
    lift = np.sqrt(np.maximum(1.0 - best * best, 0.05))
    paint(scene, part, alpha, shade(scene.light, np.stack([lean_x, lean_y, lift]), to_linear(colour), 0.15))


def paint_leaf(
    scene: Scene, ends: Sequence[tuple[float, float]], width: float, colour: Colour, *, bend: float = 0.0
) -> None:
    """Pointed leaf with a midrib from its base to its tip."""
    base, tip = ends
    ux, uy = tip[0] - base[0], tip[1] - base[1]
    length = max(math.hypot(ux, uy), 1e-3)
    reach = length / 2 + width + abs(bend) * length
    found = open_window(scene, (base[0] + tip[0]) / 2, (base[1] + tip[1]) / 2, reach, reach)
    if found is None:
        return
    part, right, down = found
    ux, uy = ux / length, uy / length
    along = (right * ux + down * uy) * (1.0 / length) + 0.5
    across = (down * ux - right * uy) * (1.0 / width)
    inside = np.clip(along, 0.0, 1.0)
    across = across - inside * (1.0 - inside) * (4.0 * bend * length / width)
    shape = np.sqrt(inside) * (1.0 - inside * inside) * 1.45
    side = np.abs(across)
    alpha = np.clip((shape - side) * (width * scene.size_px / 2) + 0.5, 0.0, 1.0) * (inside == along)
    vein = np.maximum(smooth_step(side, 0.14, 0.02), 0.35 * smooth_step(np.sin((along - side * 0.22) * 46.0), 0.7, 1.0))
    fold = np.clip(across, -1.0, 1.0) * 0.55
    normal = np.stack(
        [-uy * fold + ux * (along - 0.4) * 0.5, ux * fold + uy * (along - 0.4) * 0.5, np.full_like(fold, 0.8)]
    )
    green = to_linear(colour)
    paint(scene, part, alpha, shade(scene.light, normal, mix(green, green * 1.5 + 0.04, vein), 0.08, sharp=3))


# ----------------------------------------------------------------------------------------------- grounds


def _ground_axes(scene: Scene) -> tuple[Reals, Reals]:
    """Coordinates (H, W) on the ground along and across a random direction, in half photo widths."""
    rng, n = scene.rng, scene.size_px
    axis = (np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0
    near = 1.0 / (1.0 + 0.16 * axis[:, None])
    right, front = axis[None, :] * near, axis[:, None] * (near / scene.rise)
    turn = rng.uniform(-0.6, 0.6) + (math.pi / 2 if rng.random() < 0.4 else 0.0)
    cos, sin = math.cos(turn), math.sin(turn)
    return right * cos + front * sin, front * cos - right * sin


def _wood(scene: Scene) -> Reals:
    rng = scene.rng
    along, across = _ground_axes(scene)
    planks = across * rng.uniform(1.3, 2.6) + rng.uniform(20.0, 60.0)
    plank = planks.astype(np.int32)
    inside = planks - plank.astype(np.float32)
    tone = rng.random(128).astype(np.float32).take(plank & 127)
    shift = tone * 700.0 + rng.uniform(600.0, 900.0)
    warp = flat_noise("cloud", across * 60.0 + shift, along * 22.0 + shift, scene.size_px / 120.0)
    grain = flat_noise("fibre", across * 150.0 + shift + warp * 3.0, along * 60.0 + shift, scene.size_px / 300.0)
    rings = np.sin(across * 26.0 + warp * 5.0 + tone * 9.0)
    share = np.clip(0.5 + 0.14 * grain + 0.13 * rings + 0.5 * (tone - 0.5), 0.0, 1.3)
    palette = (
        ((0.42, 0.26, 0.14), (0.76, 0.55, 0.33)),
        ((0.28, 0.18, 0.12), (0.50, 0.36, 0.24)),
        ((0.66, 0.58, 0.48), (0.88, 0.82, 0.72)),
    )
    dark, bright = palette[int(rng.integers(3))]
    seam = smooth_step(np.minimum(inside, 1.0 - inside), 0.0, 0.03)
    return mix(to_linear(dark), to_linear(bright), share) * (0.25 + 0.75 * seam)


def _cloth(scene: Scene) -> Reals:
    rng = scene.rng
    along, across = _ground_axes(scene)
    fold = flat_noise("cloud", across * 45.0 + 800.0, along * 45.0 + rng.uniform(600.0, 1100.0), scene.size_px / 90.0)
    weave = np.sin(along * 170.0 + fold) * np.sin(across * 170.0)
    white = to_linear((0.90, 0.88, 0.84))
    dye = to_linear(
        ((0.72, 0.12, 0.14), (0.16, 0.28, 0.55), (0.20, 0.42, 0.30), (0.55, 0.50, 0.44), (0.80, 0.62, 0.20))[
            int(rng.integers(5))
        ]
    )
    style, period = rng.random(), rng.uniform(3.5, 7.0)
    one = smooth_step(np.sin(along * period), -0.12, 0.12)
    share: Reals
    if style < 0.45:
        share = 0.5 * (one + smooth_step(np.sin(across * period), -0.12, 0.12))
    elif style < 0.7:
        share = smooth_step(np.sin(along * period), 0.55, 0.7)
    else:
        share = np.full_like(along, 0.85 if rng.random() < 0.5 else 0.0)
    result: Reals = mix(white, dye, share) * (1.0 + 0.10 * weave) * (1.0 + 0.11 * fold)
    return result


def _plain(scene: Scene) -> Reals:
    rng = scene.rng
    along, across = _ground_axes(scene)
    value = rng.uniform(0.35, 0.95)
    colour = to_linear(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.35), value))
    return colour * (
        1.0 + 0.03 * flat_noise("cloud", across * 60.0 + 800.0, along * 60.0 + 800.0, scene.size_px / 120.0)
    )


def _stone(scene: Scene) -> Reals:
    rng = scene.rng
    along, across = _ground_axes(scene)
    shift = rng.uniform(600.0, 1100.0)
    cloud = flat_noise("cloud", across * 70.0 + shift, along * 70.0 + shift, scene.size_px / 140.0)
    if rng.random() < 0.5:
        vein = smooth_step(np.abs(cloud + 0.5 * np.sin(along * 2.0)), 0.22, 0.0)
        return mix(to_linear((0.88, 0.87, 0.85)) * (1.0 + 0.05 * cloud), to_linear((0.55, 0.54, 0.55)), vein * 0.7)
    grit = flat_noise("grit", across * 110.0 + shift, along * 110.0 + shift, scene.size_px / 220.0)
    result: Reals = to_linear((0.42, 0.42, 0.44)) * np.clip(1.0 + 0.35 * grit + 0.08 * cloud, 0.1, 3.0)
    return result


def _tray(scene: Scene) -> Reals:
    """Plate or tray on a table, seen with its rim."""
    rng, n = scene.rng, scene.size_px
    table = (_wood, _plain, _cloth)[int(rng.integers(3))](scene)
    axis = (np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0
    right, front = np.abs(axis[None, :]), np.abs((axis[:, None] - 0.08) * (1.0 / scene.rise))
    if rng.random() < 0.5:
        far = np.sqrt(right * right + front * front) - rng.uniform(0.88, 0.98)
    else:
        wide, deep = rng.uniform(0.55, 0.7), rng.uniform(0.45, 0.65)
        far = np.sqrt(np.maximum(right - wide, 0.0) ** 2 + np.maximum(front - deep, 0.0) ** 2) - 0.25
    glaze = to_linear(
        ((0.92, 0.92, 0.90), (0.30, 0.46, 0.58), (0.62, 0.63, 0.65), (0.20, 0.20, 0.22), (0.72, 0.40, 0.28))[
            int(rng.integers(5))
        ]
    )
    slope = np.sin(np.clip((far + 0.16) * (math.pi / 0.16), 0.0, math.pi))
    lit = axis[None, :] * scene.light.towards[0] + axis[:, None] * scene.light.towards[1]
    dish = glaze * (
        1.0
        - slope * lit * 0.45
        - 0.10 * smooth_step(np.abs(far + 0.16), 0.03, 0.0)
        + 0.25 * smooth_step(np.abs(far + 0.012), 0.012, 0.0)
    )
    table *= 1.0 - 0.55 * smooth_step(far, 0.16, 0.0)
    return mix(table, dish, np.clip(0.5 - far * (n / 2), 0.0, 1.0))


@functools.cache
def _carpet() -> tuple[Reals, ...]:
    """Leaves lying over each other, once a process: shade and tone, (512, 512) each."""
    rng, n = np.random.default_rng(7), _TEXELS
    shade, tone = np.full((n, n), 0.2, np.float32), np.zeros((n, n), np.float32)
    grid = np.arange(-44, 45, dtype=np.float32)
    for i in range(420):
        turn, length, depth = rng.uniform(0.0, 6.3), rng.uniform(26.0, 42.0), 0.35 + 0.65 * i / 420
        along = grid[None, :] * math.cos(turn) + grid[:, None] * math.sin(turn)
        across = grid[:, None] * math.cos(turn) - grid[None, :] * math.sin(turn) + 0.004 * along * along
        share = np.clip(along / (2 * length) + 0.5, 0.0, 1.0)
        wide = np.sqrt(share) * (1.0 - share * share) * 1.45 * length * rng.uniform(0.35, 0.5)
        inside, soft = (
            np.clip(wide - np.abs(across) + 0.5, 0.0, 1.0) * (wide > 1.0),
            smooth_step(np.abs(across) - wide, 9.0, -2.0),
        )
        vein = np.maximum(
            smooth_step(np.abs(across), 1.7, 0.5),
            0.45 * smooth_step(np.sin((along - np.abs(across) * 0.8) * 0.55), 0.8, 1.0),
        )
        look = depth * (0.72 + 0.22 * np.sign(across) * math.sin(turn) + 0.35 * vein + 0.006 * across)
        rows, columns = np.ix_((rng.integers(n) + np.arange(89)) % n, (rng.integers(n) + np.arange(89)) % n)
        under = shade[rows, columns] * (1.0 - 0.5 * soft)
        shade[rows, columns] = under + (look - under) * inside
        tone[rows, columns] += (rng.random() - tone[rows, columns]) * inside
    return shade, tone


def _leaves(scene: Scene) -> Reals:
    rng = scene.rng
    along, across = _ground_axes(scene)
    scale, shift = rng.uniform(75.0, 115.0), rng.uniform(600.0, 1500.0)
    down, right = across * (scale * scene.rise) + shift, along * scale + shift
    shade, tone = (between_texels(layer, down, right) for layer in _carpet())
    first, second = (
        ((0.24, 0.46, 0.14), (0.44, 0.62, 0.22)) if rng.random() < 0.7 else ((0.52, 0.28, 0.10), (0.76, 0.56, 0.20))
    )
    return mix(to_linear(first), to_linear(second), tone) * shade * 1.25


def _add_backdrop(scene: Scene, horizon: float) -> None:
    """Out-of-focus wall with lights behind the far edge of the table."""
    rng, axis = scene.rng, _coarse_axis(scene.size_px)
    wall = np.empty((3, len(axis), len(axis)), np.float32)
    wall[...] = to_linear(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.25, 0.75)))
    for _ in range(int(rng.integers(3, 9))):
        x, y, r = rng.uniform(-1, 1), rng.uniform(-1.1, horizon), rng.uniform(0.1, 0.3)
        far = np.sqrt((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2)
        wall += smooth_step(far, r, r * 0.8) * (to_linear(colorsys.hsv_to_rgb(rng.random(), 0.4, 0.7)) - wall) * 0.4
    n = scene.size_px
    share = smooth_step((np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0, horizon + 0.02, horizon - 0.02)
    scene.canvas[...] += share[:, None] * (enlarge(wall, _COARSE, scene.canvas.shape[1:]) - scene.canvas)


_GROUNDS: tuple[Callable[[Scene], Reals], ...] = (_wood, _wood, _cloth, _cloth, _tray, _leaves, _plain, _stone)


def open_scene(rng: np.random.Generator, size_px: int) -> Scene:
    """Choose light, camera and ground."""
    tilt = rng.uniform(0.65, 1.25)
    rise, level = math.sin(tilt), math.cos(tilt)
    up, front = np.array([0, -level, rise], np.float32), np.array([0, rise, level], np.float32)
    height, turn = rng.uniform(0.6, 1.15), rng.uniform(0.45, 1.9) * (1.0 if rng.random() < 0.5 else -1.0)
    flat = math.cos(height)
    towards = to_unit(np.array([flat * math.sin(turn), 0, 0]) + front * (flat * math.cos(turn)) + up * math.sin(height))
    warm = rng.uniform(-1.0, 1.0)
    key = np.array([1.0 + 0.12 * warm, 1.0 + 0.01 * warm, 1.0 - 0.17 * warm], np.float32) * np.float32(
        rng.uniform(0.85, 1.15)
    )
    sky = np.array([0.96 - 0.05 * warm, 1.0, 1.05 + 0.08 * warm], np.float32) * np.float32(rng.uniform(0.30, 0.48))
    half = to_unit(towards + np.array([0, 0, 1], np.float32))
    three = (3, 1, 1)
    light = Light(towards, up, front, half, key.reshape(three), sky.reshape(three), sky.reshape(three))
    scene = Scene(size_px, np.empty((3, size_px, size_px), np.float32), light, rise, rng)
    ground = _GROUNDS[int(rng.integers(len(_GROUNDS)))]
    level_light = light.key * (0.12 + 0.88 * math.sin(height)) * 0.85 + light.sky
    scene.canvas[...] = ground(scene) * level_light
    mean = scene.canvas.reshape(3, -1)[:, ::97].mean(axis=1).reshape(three)
    if rise < 0.82 and rng.random() < 0.55:
        _add_backdrop(scene, rng.uniform(-0.75, -0.45))
    return scene._replace(light=light._replace(bounce=mean * np.float32(0.8)))


@functools.cache
def _film() -> NDArray[np.uint8]:
    """Tone curve from the square root of light, 0-1.35 in 2048 steps, to a stored byte."""
    light = np.square(np.linspace(0.0, 1.35, 2048))
    curve = np.sqrt((1.0 - np.exp(-1.75 * light)) / (1.0 - math.exp(-1.75)))
    return np.round(255.0 * np.clip(0.986 * curve, 0.0, 1.0)).astype(np.uint8)


@functools.cache
def _sensor_noise() -> Reals:
    return np.random.default_rng(8).standard_normal(3 * 300_000).astype(np.float32)


def develop_photo(scene: Scene) -> NDArray[np.uint8]:
    """Lens blur, vignette, sensor noise and tone curve."""
    rng, n, light = scene.rng, scene.size_px, scene.canvas
    soft = rng.uniform(0.02, 0.2)
    for axis in (1, 2):
        middle = [slice(None)] * 3
        before, after = list(middle), list(middle)
        middle[axis], before[axis], after[axis] = slice(1, -1), slice(None, -2), slice(2, None)
        blurred = light.copy()
        blurred[tuple(middle)] *= 1.0 - 2.0 * soft
        blurred[tuple(middle)] += soft * (light[tuple(before)] + light[tuple(after)])
        light = blurred
    axis_squares = np.square((np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0)
    light *= rng.uniform(0.76, 0.98) * (1.0 - rng.uniform(0.02, 0.12) * (axis_squares[None, :] + axis_squares[:, None]))
    np.sqrt(np.maximum(light, 0.0, out=light), out=light)
    noise = _sensor_noise()
    start = int(rng.integers(len(noise)))
    wanted, strength = light.size, rng.uniform(0.004, 0.018)
    grain = (
        np.tile(noise, -(-(start + wanted) // len(noise)))[start : start + wanted]
        if start + wanted > len(noise)
        else noise[start : start + wanted]
    )
    light += grain.reshape(light.shape) * np.float32(strength)
    light *= 2047.0 / 1.35
    np.clip(light, 0.0, 2047.0, out=light)
    return np.ascontiguousarray(_film().take(light.astype(np.int32)).transpose(1, 2, 0))
