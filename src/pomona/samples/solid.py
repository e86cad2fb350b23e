"""Fruit as solids: outline, skin and flesh of a kind.

In: the recipe of a kind and a pose. Out: where rays meet the solid, and its colour there.
Why: a recipe is data, so a new kind, or a hundred variants for a test of scale, needs no new drawing code.

A solid of revolution meets parallel rays in closed form (an ellipsoid that holds it) plus a few Newton steps, and is
cut by planes where flesh shows. Skin and flesh are functions of the place on the solid, so they follow every pose.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from pomona.samples.scene import Colour, Reals, mix, smooth_step, solid_noise, to_linear, to_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Cut = Literal["none", "citrus", "kiwi", "melon", "core", "stone", "berry"]
Top = Literal["none", "stem", "button", "cap", "scar"]


@dataclass(frozen=True)
class Kind:
    """Recipe of one kind of fruit; shares are 0-1, colours are sRGB 0-1.

    Parameters
    ----------
    name, family : str
        Class, and the folder above it in the class tree.
    colours : tuple of 3 colours
        Main skin colour, the colour it blushes or varies to, and the accent (specks, stripes, seeds).
    form : {"round", "banana", "bunch"}
        Solid of revolution, bent tube, or many berries.
    outline : str
        Name of the outline in the table of outlines.
    stretch : float
        Length over the length that the outline draws.
    scale : float
        Size relative to a photo's usual fruit.
    n_fruits : tuple of 2 ints
        Fewest and most fruits in a photo.
    blush, streak, specks, pores, bloom, fuzz, gloss : float
        Strength of each look of the skin, 0-1.
    pattern : {"plain", "seeds", "stripes"}
        Drawing on the skin.
    top : str
        What sits on the stem end.
    lying : float
        Share of fruits that lie on their side.
    cut : str
        What the inside looks like.
    cut_share : float
        Share of fruits that are cut open.
    flesh : tuple of 2 colours
        Flesh, and its core or seeds.
    """

    name: str
    family: str
    colours: tuple[Colour, Colour, Colour]
    form: Literal["round", "banana", "bunch"] = "round"
    outline: str = "ball"
    stretch: float = 1.0
    scale: float = 1.0
    n_fruits: tuple[int, int] = (1, 5)
    blush: float = 0.3
    streak: float = 0.0
    specks: float = 0.0
    pores: float = 0.0
    bloom: float = 0.0
    fuzz: float = 0.0
    gloss: float = 0.5
    pattern: Literal["plain", "seeds", "stripes"] = "plain"
    top: Top = "stem"
    lying: float = 0.3
    cut: Cut = "none"
    cut_share: float = 0.0
    flesh: tuple[Colour, Colour] = ((0.95, 0.9, 0.75), (0.4, 0.25, 0.1))


# Radius at angles from the stem end (degrees): drawn by hand, smoothed before use.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "ball": ((0, 1.0), (180, 1.0)),
    "orange": ((0, 0.93), (12, 0.98), (90, 1.0), (180, 0.96)),
    "apple": ((0, 0.58), (9, 0.70), (20, 0.93), (38, 1.03), (65, 1.04), (100, 0.99), (135, 0.95), (160, 0.93),
        (172, 0.84), (180, 0.78)),
    "cherry": ((0, 0.70), (10, 0.80), (24, 0.97), (55, 1.03), (100, 1.0), (150, 0.97), (180, 0.95)),
    "plum": ((0, 0.86), (10, 0.92), (25, 1.0), (90, 1.0), (165, 1.0), (180, 1.03)),
    "pear": ((0, 1.42), (10, 1.42), (20, 1.30), (32, 1.10), (46, 0.92), (62, 0.86), (90, 0.95), (120, 1.02),
        (150, 1.0), (170, 0.93), (180, 0.86)),
    "lemon": ((0, 1.44), (6, 1.38), (14, 1.24), (26, 1.14), (50, 1.04), (90, 0.93), (130, 1.04), (156, 1.14),
        (168, 1.26), (175, 1.44), (180, 1.50)),
    "lime": ((0, 1.20), (12, 1.15), (30, 1.06), (90, 0.97), (150, 1.06), (168, 1.18), (175, 1.27), (180, 1.30)),
    "strawberry": ((0, 0.66), (20, 0.76), (40, 0.92), (62, 0.98), (85, 0.93), (110, 0.90), (135, 0.98), (155, 1.12),
        (170, 1.22), (180, 1.24)),
    "mango": ((0, 1.22), (25, 1.20), (55, 1.05), (90, 0.92), (125, 1.0), (155, 1.18), (180, 1.26)),
}  # fmt: skip


class Outline(NamedTuple):
    """Radius of a solid of revolution and its slope over the cosine of the angle from the stem end, -1 to 1."""

    radius: Reals  # (2048,)
    slope: Reals  # (2048,)
    width: float  # half axes of an ellipsoid that holds the solid
    length: float


class Surface(NamedTuple):
    """What the rays through a window of (h, w) pixels meet."""

    alpha: Reals
    normal: Reals  # (3, h, w), camera axes: right, down, to the eye
    place: Reals  # (3, h, w), the solid's own axes, the last from blossom to stem
    cosine: Reals  # of the angle from the stem end
    depth: Reals  # share of the way from the middle to the skin
    cut: NDArray[np.bool_]


# ------------------------------------------------------------------------------------------------ solids


@functools.lru_cache(maxsize=512)
def outline_of(name: str, stretch: float) -> Outline:
    """Smooth outline of a name in the table, drawn out along its axis."""
    angles = np.arange(-90.0, 270.5, 0.5)
    drawn = np.array(_OUTLINES[name])
    radius = np.interp(np.abs(np.where(angles > 180.0, 360.0 - angles, angles)), drawn[:, 0], drawn[:, 1])
    bell = np.exp(-0.5 * (np.arange(-40, 41) * 0.5 / 4.5) ** 2)
    radius = np.convolve(radius, bell / bell.sum(), "same")[(angles >= 0) & (angles <= 180)]
    turn = np.radians(np.arange(0.0, 180.5, 0.5))
    side, height = radius * np.sin(turn), radius * np.cos(turn) * stretch
    radius, cosine = np.hypot(side, height), height / np.hypot(side, height)
    grid = np.linspace(-1.0, 1.0, 2048)
    smooth = np.interp(grid, cosine[::-1], radius[::-1])
    # Of all ellipsoids that hold the solid, the one of least volume starts the rays nearest to it.
    lengths = np.abs(height).max() * np.linspace(1.01, 2.0, 60)
    widths = (side[:, None] / np.sqrt(1.0 - (height[:, None] / lengths) ** 2)).max(axis=0)
    best = int((widths**2 * lengths).argmin())
    width, length = float(widths[best]), float(lengths[best])
    return Outline(smooth.astype(np.float32), np.gradient(smooth, grid).astype(np.float32), width, length)


def _ellipsoid_hit(outline: Outline, square: Reals, axial: Reals, axis_z: float) -> Reals:
    """Depth where rays meet the ellipsoid that holds the solid, or come nearest to it."""
    thin, slim = 1.0 / outline.width**2, 1.0 / outline.length**2 - 1.0 / outline.width**2
    a, b = thin + slim * axis_z * axis_z, axial * (slim * axis_z)
    c = square * thin + axial * axial * slim - 1.0
    result: Reals = (np.sqrt(np.maximum(b * b - a * c, 0.0)) - b) * (1.0 / a)
    return result


def trace_solid(
    outline: Outline,
    pose: Reals,
    right: Reals,
    down: Reals,
    *,
    planes: Sequence[tuple[Reals, float]] = (),
    pixel: float,
) -> Surface:
    """Meet a solid of revolution with rays along the eye's axis.

    `pose` has the solid's axes as rows, `planes` keep what is below an offset along a normal of the solid, `pixel` is
    the width of a pixel in radii.
    """
    axis = pose[2]
    square, axial, axis_z = right * right + down * down, right * axis[0] + down * axis[1], float(axis[2])

    def measure(depth: Reals) -> tuple[Reals, Reals, Reals, NDArray[np.int32]]:
        reach = np.sqrt(square + depth * depth) + 1e-6
        cosine = (axial + depth * axis_z) / reach
        cell = np.clip(cosine * 1023.5 + 1023.5, 0.0, 2047.0).astype(np.int32)
        return reach, cosine, reach - outline.radius.take(cell), cell

    depth = _ellipsoid_hit(outline, square, axial, axis_z)
    reach, cosine, gap, cell = measure(depth)
    nearest = gap
    for _ in range(1 if outline.radius.std() < 1e-6 else 4):
        bend = outline.slope.take(cell)
        steep = (depth - bend * (axis_z - cosine * depth / reach)) / reach
        depth = depth - gap / np.maximum(steep, 0.35)
        reach, cosine, gap, cell = measure(depth)
        nearest = np.minimum(nearest, gap)
    alpha = np.clip(1.0 - nearest * (1.0 / pixel), 0.0, 1.0)
    skin = depth
    faces = []
    for normal, offset in planes:
        nx, ny, nz = (float(v) for v in normal @ pose)
        if nz > 0.05:
            plane = (offset - nx * right - ny * down) * (1.0 / nz)
            faces.append((plane, (nx, ny, nz)))
            depth = np.minimum(depth, plane)
    where = np.stack([np.broadcast_to(right, depth.shape), np.broadcast_to(down, depth.shape), depth])
    if planes:
        reach, cosine, gap, cell = measure(depth)
        alpha = np.where(depth < skin, np.clip(0.7 - gap * (1.0 / pixel), 0.0, 1.0), alpha)
    place = np.empty_like(where)
    for row in range(3):
        place[row] = where[0] * pose[row, 0] + where[1] * pose[row, 1] + where[2] * pose[row, 2]
    for normal, offset in planes:
        over = place[0] * normal[0] + place[1] * normal[1] + place[2] * normal[2] - offset
        alpha = alpha * np.clip(1.0 - over * (1.0 / pixel), 0.0, 1.0)
    away = where / reach
    normal_map = away - (outline.slope.take(cell) / reach) * (axis.reshape(3, 1, 1) - cosine * away)
    normal_map /= np.sqrt(normal_map[0] ** 2 + normal_map[1] ** 2 + normal_map[2] ** 2)
    for plane, facing in faces:
        np.copyto(normal_map, np.array(facing, np.float32).reshape(3, 1, 1), where=(depth >= plane) & (depth < skin))
    return Surface(alpha, normal_map, place, cosine, reach / outline.radius.take(cell), depth < skin)


def _tilt(normal: Reals, height: Reals, strength: float) -> None:
    """Bump mapping after Blinn (1978): lean the normals down the slopes of a height map, in place."""
    normal[0, :, 1:] -= (height[:, 1:] - height[:, :-1]) * strength
    normal[1, 1:, :] -= (height[1:, :] - height[:-1, :]) * strength


def skin_albedo(kind: Kind, surface: Surface, rng: np.random.Generator, detail: float) -> tuple[Reals, Reals | float]:
    """Albedo and gloss of the skin; bumps lean the surface's normals in place. `detail` is the radius in pixels."""
    first, second, accent = (to_linear(c) for c in kind.colours)
    start = rng.uniform(500.0, 900.0, 3).astype(np.float32)
    place, cosine = surface.place, surface.cosine
    cloud = solid_noise("soft", place, (14.0, 14.0, 14.0), start, detail)
    share = cloud * 0.3
    if kind.blush:
        side = to_unit(rng.standard_normal(3))
        lean = place[0] * side[0] + place[1] * side[1] + place[2] * (0.5 * side[2])
        share = (lean * 1.1 + cloud * 0.22 + rng.uniform(-0.6, 0.3)) * kind.blush
    if kind.streak:
        streak = solid_noise(
            "soft", place / (0.3 + np.sqrt(np.maximum(1.0 - cosine * cosine, 0.0))), (44.0, 44.0, 5.0), start, detail
        )
        share = share + streak * (0.28 * kind.streak)
    albedo = mix(first, second, smooth_step(share, -0.2, 0.85))
    if kind.outline == "mango":
        albedo = mix(albedo, accent, smooth_step(0.25 * cloud - share, 0.25, 1.1) * 0.8)
    albedo *= 1.0 + cloud * 0.06
    gloss: Reals | float = kind.gloss
    if kind.pores:
        pores = solid_noise("pores", place, (70.0, 70.0, 70.0), start, detail)
        _tilt(surface.normal, pores, 0.085 * kind.pores)
        albedo *= 1.0 + pores * 0.05
    if kind.specks:
        specks = solid_noise("dots", place, (56.0, 56.0, 56.0), start, detail)
        albedo = mix(albedo, accent, specks * (0.75 * kind.specks))
    if kind.pattern == "stripes":
        jagged = solid_noise("soft", place, (40.0, 40.0, 40.0), start + 9.0, detail)
        albedo = _stripes(albedo, accent, place, cloud, jagged)
    if kind.pattern == "seeds":
        albedo, gloss = _seeds(albedo, accent, surface, kind.gloss)
    if kind.outline == "plum":
        groove = smooth_step(np.abs(place[1]), 0.13, 0.0) * (place[0] > 0)
        _tilt(surface.normal, groove, -0.10 * detail / 6.0)
        albedo = albedo * (1.0 - 0.22 * groove)
    if kind.fuzz:
        hair = solid_noise("pores", place, (60.0, 60.0, 24.0), start, detail)
        _tilt(surface.normal, hair, 0.10 * kind.fuzz)
        edge = 1.0 - np.clip(surface.normal[2], 0.0, 1.0)
        albedo = albedo * (1.0 + hair * (0.13 * kind.fuzz)) + (edge * edge * (0.22 * kind.fuzz)) * to_linear(
            (0.95, 0.85, 0.65)
        )
    if kind.bloom:
        veil = smooth_step(cloud + surface.normal[1] * -0.25, -0.5, 1.6) * kind.bloom * rng.uniform(0.35, 0.8)
        albedo, gloss = mix(albedo, accent, veil), kind.gloss * (1.0 - 0.85 * veil)
    return _poles(kind, albedo, surface), gloss


def _stripes(albedo: Reals, dark: Reals, place: Reals, cloud: Reals, jagged: Reals) -> Reals:
    """Jagged dark bands of a watermelon from pole to pole."""
    wave = np.sin(np.arctan2(place[1], place[0]) * 5.5 + cloud * 0.55 + jagged * 0.55)
    return mix(albedo * (1.0 + 0.12 * jagged), dark, smooth_step(wave + 0.25 * jagged, -0.15, 0.55))


def _seeds(albedo: Reals, seed: Reals, surface: Surface, gloss: float) -> tuple[Reals, Reals]:
    """Staggered rows of seeds in dimples around a strawberry."""
    place = surface.place
    rows = place[2] * 5.2
    row = np.floor(rows)
    ring = np.sqrt(place[0] ** 2 + place[1] ** 2)
    count = 15.0
    turn = np.arctan2(place[1], place[0]) * (count / (2 * math.pi)) + 0.5 * (row - 2.0 * np.floor(row * 0.5))
    across = (turn - np.floor(turn) - 0.5) * ring * (2 * math.pi / count) * 5.2
    along = rows - row - 0.5
    far = np.sqrt((across * 1.25) ** 2 + (along * 0.85) ** 2)
    shown = smooth_step(ring, 0.12, 0.3)
    dimple = smooth_step(far, 0.48, 0.12) * shown
    _tilt(surface.normal, -dimple, 0.55)
    kernel = smooth_step(far, 0.21, 0.13) * shown
    return mix(albedo * (1.0 - 0.35 * dimple), seed, kernel), gloss * (1.0 - 0.5 * dimple)


def _poles(kind: Kind, albedo: Reals, surface: Surface) -> Reals:
    """Stem hollow, button and blossom end."""
    cosine = surface.cosine
    if kind.outline in ("apple", "plum", "cherry"):
        result: Reals = (
            albedo * (1.0 - 0.55 * smooth_step(cosine, 0.955, 0.995)) * (1.0 - 0.6 * smooth_step(-cosine, 0.985, 0.998))
        )
        return result
    if kind.top == "button":
        star = smooth_step(cosine, 0.991, 0.995)
        return mix(albedo * (1.0 - 0.25 * smooth_step(cosine, 0.94, 0.985)), to_linear((0.36, 0.46, 0.16)), star)
    if kind.top == "scar":
        scar = smooth_step(np.abs(cosine), 0.988, 0.996)
        return mix(albedo, to_linear((0.40, 0.34, 0.18)), scar * 0.8)
    if kind.outline == "pear":
        return mix(albedo, to_linear((0.25, 0.18, 0.10)), smooth_step(-cosine, 0.985, 0.995))
    return albedo


# ------------------------------------------------------------------------------------------------- flesh


class _Face(NamedTuple):
    """What a cut face is painted from; depth is 0 in the middle and 1 at the skin, turn is in radians."""

    flesh: Reals
    core: Reals
    place: Reals
    depth: Reals
    turn: Reals
    ray: Reals


def flesh_albedo(kind: Kind, surface: Surface, rng: np.random.Generator, detail: float) -> Reals:
    """Albedo of a cut face."""
    flesh, core = (to_linear(c) for c in kind.flesh)
    place, depth = surface.place, surface.depth
    start = rng.uniform(500.0, 900.0, 3).astype(np.float32)
    across = kind.cut in ("citrus", "kiwi")
    turn = np.arctan2(place[1], place[0]) if across else np.arctan2(place[1], -place[2])
    grain = solid_noise("soft", place, (20.0, 20.0, 20.0), start, detail)
    ray = solid_noise("soft", place / (depth + 0.2), (26.0, 26.0, 26.0), start, detail)
    face = _FACES[kind.cut](_Face(flesh, core, place, depth, turn, ray)) * (1.0 + 0.05 * grain)
    if kind.cut == "melon":
        return mix(face, to_linear(kind.colours[2]) * 1.5, smooth_step(depth, 0.96, 0.98))
    return mix(face, to_linear(kind.colours[0]), smooth_step(depth, 0.955, 0.975))


def _citrus_face(face: _Face) -> Reals:
    wedge = face.turn * (10 / (2 * math.pi))
    wall = np.abs(wedge - np.floor(wedge) - 0.5) * 2.0
    gap = np.maximum(
        smooth_step((1.0 - wall) * face.depth, 0.09, 0.035),
        np.maximum(smooth_step(face.depth, 0.83, 0.87), smooth_step(face.depth, 0.14, 0.09)),
    )
    return mix(face.flesh * (1.0 + 0.16 * face.ray) * (0.88 + 0.2 * wall), face.core, gap)


def _kiwi_face(face: _Face) -> Reals:
    light = (
        smooth_step(np.abs(np.sin(face.turn * 13.0)) + 0.3 * face.ray, 0.5, 1.3)
        * smooth_step(face.depth, 0.9, 0.3)
        * 0.45
    )
    albedo = mix(
        face.flesh * (1.0 + 0.1 * face.ray) * (1.12 - 0.35 * face.depth),
        face.core,
        np.maximum(light, smooth_step(face.depth, 0.32, 0.22)),
    )
    cell = face.turn * (26 / (2 * math.pi))
    index = np.floor(cell)
    middle = 0.42 + 0.07 * np.sin(index * 2.4)
    far = np.sqrt(((cell - index - 0.5) * face.depth * 1.75) ** 2 + ((face.depth - middle) * 4.6) ** 2)
    return mix(albedo, to_linear((0.09, 0.06, 0.05)), smooth_step(far, 0.30, 0.20))


def _melon_face(face: _Face) -> Reals:
    albedo = face.flesh * (1.0 + 0.10 * face.ray) * (1.12 - 0.2 * face.depth)
    albedo = mix(albedo, to_linear((0.93, 0.95, 0.80)), smooth_step(face.depth, 0.80, 0.88))
    albedo = mix(albedo, to_linear((0.62, 0.78, 0.42)), smooth_step(face.depth, 0.90, 0.95))
    for middle, count in ((0.44, 10), (0.64, 14)):
        cell = face.turn * (count / (2 * math.pi))
        index = np.floor(cell)
        along = face.depth - middle - 0.05 * np.sin(index * 3.7)
        far = np.sqrt(
            ((cell - index - 0.5) * face.depth * (2 * math.pi / count) * (1.3 - 2.5 * along)) ** 2 + (along * 0.75) ** 2
        )
        albedo = mix(albedo, face.core, smooth_step(far, 0.050, 0.036))
    return albedo


def _core_face(face: _Face) -> Reals:
    albedo = face.flesh * (1.0 + 0.03 * face.ray)
    far = np.sqrt((face.place[1] * 1.1) ** 2 + (face.place[2] * 0.95) ** 2)
    albedo = (
        albedo
        * (1.0 - 0.18 * smooth_step(np.abs(far - 0.40), 0.035, 0.01))
        * (1.0 - 0.12 * smooth_step(far, 0.40, 0.2))
    )
    side = np.abs(face.place[1]) - 0.14
    kernel = np.sqrt((side * (1.0 + 0.9 * face.place[2])) ** 2 * 4.0 + (face.place[2] * 0.9) ** 2)
    return mix(albedo, face.core, smooth_step(kernel, 0.19, 0.15))


def _stone_face(face: _Face) -> Reals:
    far = np.sqrt((face.place[1] * 1.35) ** 2 + face.place[2] ** 2)
    albedo = face.flesh * (1.0 + 0.08 * face.ray) * (1.05 - 0.25 * smooth_step(face.depth, 0.7, 1.0))
    albedo = mix(albedo, face.core * 1.6, smooth_step(far, 0.62, 0.46) * 0.5)
    return mix(
        albedo,
        face.core * (1.0 + 0.3 * face.ray) * (0.7 + 1.2 * smooth_step(face.place[1] + face.place[2], -0.6, 0.5)),
        smooth_step(far, 0.46, 0.42),
    )


def _berry_face(face: _Face) -> Reals:
    far = np.sqrt((face.place[1] * 1.9) ** 2 + (face.place[2] - 0.1) ** 2)
    streak = (
        smooth_step(np.sin(face.turn * 17.0) + 0.5 * face.ray, 0.3, 1.2)
        * smooth_step(np.abs(face.depth - 0.62), 0.25, 0.05)
        * 0.5
    )
    return mix(
        face.flesh * (1.25 - 0.5 * face.depth * face.depth), face.core, np.maximum(streak, smooth_step(far, 0.62, 0.28))
    )


_FACES: dict[Cut, Callable[[_Face], Reals]] = {
    "citrus": _citrus_face,
    "kiwi": _kiwi_face,
    "melon": _melon_face,
    "core": _core_face,
    "stone": _stone_face,
    "berry": _berry_face,
}


def pose_about(third: Reals, rng: np.random.Generator) -> Reals:
    """Right-handed axes with a given third one and a random turn about it."""
    side = to_unit(np.cross(third, to_unit(rng.standard_normal(3))).astype(np.float32))
    return np.stack([side, np.cross(third, side), third]).astype(np.float32)
