"""Fruit on a scene: poses, cuts, stems, bunches and how many there are.

In: a scene and the recipe of a kind. Out: one to five fruits, or a bunch, drawn on the scene's canvas.
Why: what makes a kind known at a glance is as much its cap, its stalk or its bunch as its skin.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.samples.scene import (
    Reals,
    Scene,
    cast_shadow,
    mix,
    open_window,
    paint,
    paint_leaf,
    paint_stroke,
    shade,
    smooth_step,
    solid_noise,
    to_linear,
    to_unit,
)
from pomona.samples.solid import Kind, Outline, flesh_albedo, outline_of, pose_about, skin_albedo, trace_solid

if TYPE_CHECKING:
    from collections.abc import Sequence


def _choose_axis(scene: Scene, outline: Outline, *, lying: bool) -> Reals:
    """Direction of the stem end: up with a lean, or along the ground; long solids do not point at the eye."""
    rng, light = scene.rng, scene.light
    turn = rng.uniform(-1.0, 1.0) + (math.pi if rng.random() < 0.5 else 0.0) if lying else rng.uniform(0.0, 2 * math.pi)
    ground = np.array([math.cos(turn), 0, 0], np.float32) + light.front * np.float32(math.sin(turn))
    lean = rng.uniform(-0.1, 0.25) if lying else rng.uniform(1.1, 1.55)
    axis = to_unit(ground * np.float32(math.cos(lean)) + light.up * np.float32(math.sin(lean)))
    if outline.length > 1.15 * outline.width:
        axis[2] = min(max(axis[2], np.float32(-0.45)), np.float32(0.45))
    return to_unit(axis)


def _cut_pose(scene: Scene, kind: Kind, *, across: bool) -> Reals:
    """Pose that shows the cut face to the eye."""
    rng, light = scene.rng, scene.light
    facing = to_unit(light.up * np.float32(rng.uniform(0.35, 0.9)) + light.front * np.float32(rng.uniform(0.4, 0.9))
                   + np.array([rng.uniform(-0.35, 0.35), 0, 0.25], np.float32))  # fmt: skip
    if across:
        return pose_about(facing, rng)
    stem = pose_about(facing, rng)[0]
    if kind.cut == "melon":
        lean = rng.uniform(-0.5, 0.5)
        stem = np.array([math.sin(lean), -math.cos(lean), 0.0], np.float32)
        stem = to_unit(stem - facing * (stem @ facing))
    return np.stack([facing, np.cross(stem, facing), stem]).astype(np.float32)


def _cut_planes(kind: Kind, rng: np.random.Generator) -> list[tuple[Reals, float]]:
    first, third = np.array([1, 0, 0], np.float32), np.array([0, 0, 1], np.float32)
    if kind.cut in ("citrus", "kiwi"):
        return [(third, rng.uniform(-0.05, 0.1))]
    if kind.cut != "melon":
        return [(first, 0.0)]
    if rng.random() < 0.3:
        return [(first, rng.uniform(-0.1, 0.1))]
    slab = rng.uniform(0.10, 0.2)
    planes = [(first, slab), (-first, slab), (third, rng.uniform(-0.1, 0.05))]
    if rng.random() < 0.35:
        lean = rng.uniform(0.5, 0.9)
        planes += [
            (np.array([0, s * math.sin(lean + 0.5), math.cos(lean + 0.5)], np.float32), 0.0) for s in (-1.0, 1.0)
        ]
    return planes


class _Stand(NamedTuple):
    """How one solid stands on the photo; `pose` has its axes as rows, `radius` is in half photo widths."""

    outline: Outline
    pose: Reals
    x: float
    y: float
    radius: float

    def spot(self, across: float, aside: float, along: float) -> tuple[float, float, float]:
        """Where a point given on the solid's axes falls on the photo, and its depth."""
        camera = np.array([across, aside, along], np.float32) @ self.pose
        return self.x + float(camera[0]) * self.radius, self.y + float(camera[1]) * self.radius, float(camera[2])


def _draw_round(scene: Scene, kind: Kind, x: float, y: float, radius: float) -> None:
    """One fruit of revolution, whole with its top, or cut open."""
    rng = scene.rng
    cut = rng.random() < kind.cut_share
    outline = outline_of(kind.outline, round(kind.stretch * rng.uniform(0.94, 1.06) * 20) / 20)
    planes = _cut_planes(kind, rng) if cut else []
    if cut:
        pose = _cut_pose(scene, kind, across=kind.cut in ("citrus", "kiwi"))
    else:
        pose = pose_about(_choose_axis(scene, outline, lying=rng.random() < kind.lying), rng)
    sliced = len(planes) > 1
    radius *= {3: 1.2, 5: 1.45}.get(len(planes), 1.0)
    stand = _Stand(outline, pose, x, y - (0.4 * radius if sliced else 0.0), radius)
    _cast_round(scene, stand, long=not cut, sliced=sliced)
    towards_eye = bool(pose[2, 2] > -0.1)
    if not cut and not towards_eye:
        _draw_top(scene, kind, stand)
    _paint_round(scene, kind, stand, planes)
    if not cut and towards_eye:
        _draw_top(scene, kind, stand)


def _cast_round(scene: Scene, stand: _Stand, *, long: bool, sliced: bool) -> None:
    """Shadow of one to three balls in a row; a slice stands on its rind and throws a narrow one."""
    outline, radius = stand.outline, stand.radius
    extra = (outline.length - outline.width) * radius
    steps = (-0.6, 0.0, 0.6) if long and outline.length > 1.15 * outline.width else (0.0,)
    dx, dy = float(stand.pose[2, 0]) * extra, float(stand.pose[2, 1]) * extra
    down = radius * 0.35 if sliced else 0.0
    balls = [(stand.x + dx * step, stand.y + dy * step + down, radius * 0.97) for step in steps]
    cast_shadow(scene, balls, thin=0.4 if sliced else 1.0)


def _paint_round(scene: Scene, kind: Kind, stand: _Stand, planes: Sequence[tuple[Reals, float]]) -> None:
    """Trace, colour, shade and paint one solid."""
    rng, (outline, pose, x, y, radius) = scene.rng, stand
    reach = radius * float(outline.radius.max()) * 1.05 + 2.0 / scene.size_px
    found = open_window(scene, x, y, reach, reach)
    if found is None:
        return
    right, down = found[1] * (1.0 / radius), found[2] * (1.0 / radius)
    if not planes:
        # No fruit is perfectly round: a bow bends the outline for the price of one sine.
        bow = 0.16 if kind.outline == "mango" else 0.05
        right = right + rng.uniform(-bow, bow) * np.sin(down * 2.2 + rng.uniform(0.0, 6.3))
    surface = trace_solid(outline, pose, right, down, planes=planes, pixel=2.0 / (scene.size_px * radius))
    detail = radius * scene.size_px / 2
    flat = np.where(surface.cut, surface.normal, np.float32(0.0)) if surface.cut.any() else None
    albedo, gloss = skin_albedo(kind, surface, rng, detail)
    if flat is not None:
        np.copyto(surface.normal, flat, where=surface.cut)
        albedo = np.where(surface.cut, flesh_albedo(kind, surface, rng, detail), albedo)
        gloss = np.where(surface.cut, np.float32(0.25), gloss)
    tint = 1.0 + rng.uniform(-0.06, 0.06, 3).astype(np.float32).reshape(3, 1, 1)
    normal = surface.normal
    normal /= np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    low = -(normal[1] * scene.light.up[1] + normal[2] * scene.light.up[2])
    dusk = 1.0 - 0.45 * smooth_step(low, 0.1, 1.0)
    paint(scene, found[0], surface.alpha, shade(scene.light, normal, albedo * tint, gloss) * dusk)


def _draw_top(scene: Scene, kind: Kind, stand: _Stand) -> None:
    if kind.top == "cap":
        _draw_cap(scene, stand)
    elif kind.top == "stem":
        _draw_stem(scene, kind, stand)


def _draw_stem(scene: Scene, kind: Kind, stand: _Stand) -> None:
    """Stem out of the hollow, now and then with a leaf."""
    rng, cherry = scene.rng, kind.outline == "cherry"
    base = float(stand.outline.radius[-1])
    length = rng.uniform(1.5, 2.1) if cherry else rng.uniform(0.28, 0.5)
    bend = rng.uniform(-0.35, 0.35) * length
    steps = (0.0, 0.25, 0.5, 0.75, 1.0)
    points = [stand.spot(bend * s * s, 0.3 * bend * s, base * 0.97 + length * s)[:2] for s in steps]
    thick = stand.radius * (0.035 if cherry else rng.uniform(0.045, 0.065))
    colour = (0.38, 0.48, 0.16) if cherry else (0.34, 0.24, 0.13)
    paint_stroke(scene, points, (thick, thick * 1.5), colour)
    if kind.outline in ("apple", "pear") and rng.random() < 0.35:
        turn = rng.uniform(0.0, 2 * math.pi)
        tip = stand.spot(0.9 * math.cos(turn), 0.9 * math.sin(turn), base + 0.25)[:2]
        paint_leaf(scene, (points[2], tip), stand.radius * 0.2, (0.26, 0.48, 0.14), bend=rng.uniform(-0.15, 0.15))


def _draw_cap(scene: Scene, stand: _Stand) -> None:
    """Leafy cap of a strawberry: pointed leaves around the stem, far ones first."""
    rng, base, radius = scene.rng, float(stand.outline.radius[-1]), stand.radius
    n_leaves, first = int(rng.integers(8, 12)), rng.uniform(0.0, 6.3)
    root, tips = stand.spot(0.0, 0.0, base), []
    for i in range(n_leaves):
        turn, out, lift = first + 2 * math.pi * i / n_leaves, rng.uniform(0.6, 0.9), rng.uniform(-0.02, 0.25)
        tips.append(stand.spot(out * math.cos(turn), out * math.sin(turn), base + lift))
    for tip in sorted(tips, key=lambda spot: spot[2]):
        green = (rng.uniform(0.26, 0.36), rng.uniform(0.48, 0.60), rng.uniform(0.14, 0.2))
        width, bend = radius * rng.uniform(0.16, 0.21), rng.uniform(-0.15, 0.15)
        paint_leaf(scene, (root[:2], tip[:2]), width, green, bend=bend)
    if rng.random() < 0.7:
        end = stand.spot(rng.uniform(-0.2, 0.2), 0.1, base + rng.uniform(0.3, 0.6))
        paint_stroke(scene, [root[:2], end[:2]], (radius * 0.04, radius * 0.05), (0.42, 0.56, 0.22))


class _Bend(NamedTuple):
    """Arc of a banana on the photo: its middle, radius, direction and half angle, and the fruit's half width."""

    x: float
    y: float
    radius: float
    turn: float
    span: float
    thick: float
    green: float
    ripe: float
    flat: float  # how much the camera squashes the ground

    def spot(self, angle: float) -> tuple[float, float]:
        """Point of the arc; the stem is at -span."""
        right, down = self.radius * math.cos(self.turn + angle), self.radius * math.sin(self.turn + angle)
        return self.x + right, self.y + down * self.flat

    def moved(self, angle: float, target: tuple[float, float]) -> _Bend:
        """Arc whose point at `angle` lies on the target."""
        x, y = self.spot(angle)
        return self._replace(x=self.x + target[0] - x, y=self.y + target[1] - y)


@functools.cache
def _banana_widths() -> Reals:
    """Half width along the arc from -1.1 to 1.1 of its half angle, stem first, as share of the greatest."""
    places = [-1.06, -1.0, -0.9, -0.78, -0.6, -0.2, 0.25, 0.6, 0.8, 0.9, 0.95, 1.0, 1.03]
    widths = [0.24, 0.27, 0.30, 0.46, 0.80, 1.0, 1.02, 0.90, 0.68, 0.46, 0.33, 0.24, 0.18]
    table, bell = np.interp(np.linspace(-1.1, 1.1, 512), places, widths), np.hanning(25)
    smooth: Reals = np.convolve(np.pad(table, 12, "edge"), bell / bell.sum(), "valid").astype(np.float32)
    return smooth


def _draw_banana(scene: Scene, kind: Kind, bend: _Bend) -> None:
    """Bent tube; its cross-section is taken as lying across the eye's axis, so no ray needs to be traced."""
    spots = [bend.spot(angle) for angle in np.linspace(-bend.span, bend.span, 9).tolist()]
    cast_shadow(scene, [(x, y, bend.thick * (0.6 if i in (0, 8) else 1.0)) for i, (x, y) in enumerate(spots)])
    left, right = min(x for x, _ in spots), max(x for x, _ in spots)
    top, bottom = min(y for _, y in spots), max(y for _, y in spots)
    middle, margin = ((left + right) / 2, (top + bottom) / 2), bend.thick * 1.2
    found = open_window(scene, *middle, (right - left) / 2 + margin, (bottom - top) / 2 + margin)
    if found is None:
        return
    across, down = found[1] + (middle[0] - bend.x), (found[2] + (middle[1] - bend.y)) * (1.0 / bend.flat)
    reach = np.sqrt(across * across + down * down)
    cos, sin = math.cos(bend.turn), math.sin(bend.turn)
    share = np.arctan2(down * cos - across * sin, across * cos + down * sin) * (1.0 / bend.span)
    cell = np.clip((share + 1.1) * (511 / 2.2), 0, 511).astype(np.int32)
    width = _banana_widths().take(cell) * bend.thick
    side = (reach - bend.radius) / width
    pixels = scene.size_px / 2
    past = np.maximum(np.abs(share) - 1.02, 0.0) * (bend.span * bend.radius)
    alpha = np.clip((1.0 - np.abs(side)) * width * pixels + 0.5, 0.0, 1.0) * np.clip(1.0 - past * pixels, 0.0, 1.0)
    facet = np.clip(side, -1.0, 1.0)
    facet = np.clip(facet - 0.13 * np.sin(6.0 * facet), -1.0, 1.0)
    lift = np.sqrt(np.maximum(1.0 - facet * facet, 0.01))
    normal = np.stack([across / reach * facet, down / reach * facet, lift])
    albedo = _banana_albedo(scene, kind, bend, share, side)
    paint(scene, found[0], alpha, shade(scene.light, normal, albedo, kind.gloss, sharp=4))


def _banana_albedo(scene: Scene, kind: Kind, bend: _Bend, share: Reals, side: Reals) -> Reals:
    """Yellow, green towards the ends, brown specks, ridges and dark tips."""
    rng, detail = scene.rng, 0.4 * scene.size_px
    yellow, lime, brown = (to_linear(c) for c in kind.colours)
    bulge = np.clip(side, -1.0, 1.0)
    place = np.stack([share * 2.2, bulge * 0.5, np.zeros_like(share)])
    start = rng.uniform(500.0, 900.0, 3).astype(np.float32)
    cloud = solid_noise("soft", place, (16.0, 16.0, 16.0), start, detail)
    ends = np.maximum(smooth_step(share, -0.45, -0.85), 0.7 * smooth_step(share, 0.65, 0.95))
    unripe = np.clip(ends * (0.4 + 0.5 * bend.green) + bend.green * 0.5 + cloud * 0.08, 0.0, 1.0)
    albedo = mix(yellow, lime, unripe) * (1.0 + 0.04 * cloud)
    albedo = albedo * (1.0 - 0.16 * smooth_step(np.cos(6.0 * bulge), 0.86, 1.0))
    specks = np.maximum(solid_noise("dots", place, (24.0, 38.0, 1.0), start, detail), smooth_step(cloud, 1.6, 2.2))
    albedo = mix(albedo, brown, specks * (bend.ripe * kind.specks))
    tips = np.maximum(smooth_step(share, 0.90, 0.965), smooth_step(share + 0.03 * cloud, -0.93, -1.0) * 0.85)
    return mix(albedo, to_linear((0.20, 0.13, 0.08)), tips)


def _draw_bananas(scene: Scene, kind: Kind, n_fruits: int) -> None:
    """One banana, two, or a hand that shares its crown."""
    rng = scene.rng
    radius = rng.uniform(0.78, 1.0) * kind.scale
    bend = _Bend(
        x=0.0,
        y=0.0,
        radius=radius,
        turn=rng.uniform(0.0, 2 * math.pi),
        span=rng.uniform(0.72, 0.92) / math.sqrt(radius),
        thick=radius * 0.165 * rng.uniform(0.95, 1.1) * math.sqrt(kind.stretch),
        green=max(0.0, rng.uniform(-0.5, 0.6)),
        ripe=max(0.0, rng.uniform(-0.4, 1.0)),
        flat=0.55 + 0.45 * scene.rise,
    )
    if n_fruits > 2:
        _draw_hand(scene, kind, bend, n_fruits)
        return
    for i in range(n_fruits):
        step, turn = (i - (n_fruits - 1) / 2) * 0.55, bend.turn + i * rng.uniform(-0.5, 0.5)
        x, y = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)
        target = (x + (step + 0.12) * math.cos(bend.turn), y + (step + 0.12) * math.sin(bend.turn))
        _draw_banana(scene, kind, bend._replace(turn=turn).moved(0.0, target))


def _draw_hand(scene: Scene, kind: Kind, bend: _Bend, n_fruits: int) -> None:
    """Bananas that fan out from one crown."""
    rng, radius = scene.rng, bend.radius
    out = bend.turn + math.pi / 2 - bend.span + 0.35
    cos, sin = math.cos(out), math.sin(out)
    crown = (-0.72 * radius * cos + rng.uniform(-0.1, 0.1), -0.6 * radius * sin + rng.uniform(-0.1, 0.1))
    for i in range(n_fruits):
        turn = bend.turn + (i - (n_fruits - 1) / 2) * rng.uniform(0.2, 0.27)
        one = bend._replace(turn=turn, radius=radius * rng.uniform(0.94, 1.04))
        _draw_banana(scene, kind, one.moved(-bend.span, crown))
    ends = [(crown[0] - 0.07 * cos, crown[1] - 0.07 * sin), (crown[0] + 0.05 * cos, crown[1] + 0.05 * sin)]
    paint_stroke(scene, ends, (radius * 0.06, radius * 0.072), (0.34, 0.27, 0.12))


def _bunch_spots(scene: Scene, kind: Kind, n_berries: int) -> tuple[list[tuple[float, float, float]], float, Reals]:
    """Middles (x, y, depth) of the berries, far ones first, their radius, and the bunch's direction."""
    rng, loose = scene.rng, kind.pattern == "seeds"
    radius = (
        kind.scale
        * (rng.uniform(0.17, 0.24) if loose else rng.uniform(0.155, 0.185))
        * (1.0 if n_berries < 20 else 0.9)
    )
    turn = rng.uniform(0.0, 2 * math.pi) if rng.random() < 0.4 else rng.uniform(1.2, 1.95)
    down, spots = np.array([math.cos(turn), math.sin(turn)], np.float32), list[tuple[float, float, float]]()
    golden = math.pi * (3.0 - math.sqrt(5.0))
    for i in range(n_berries):
        if loose:
            far = radius * 1.05 * math.sqrt(i + 0.3)
            x, y = far * math.cos(i * golden + turn), far * math.sin(i * golden + turn) * (0.5 + 0.5 * scene.rise)
            spots.append((x, y, y))
            continue
        share = (i + 0.5) / n_berries
        along = (share**0.85 - 0.5) * radius * (2.4 + 0.24 * n_berries)
        wide = radius * 2.4 * math.sin(math.pi * min(0.16 + 0.82 * share, 0.98)) ** 0.8 * (1.15 - 0.3 * share)
        swing = 2.0 * ((i * 0.618034) % 1.0) - 1.0
        across, depth = wide * swing, math.sqrt(1.0 - swing * swing)
        x, y = float(down[0]) * along - float(down[1]) * across, float(down[1]) * along + float(down[0]) * across
        spots.append((x, y, depth + 0.3 * rng.standard_normal()))
    middle_x, middle_y = rng.uniform(-0.12, 0.12), rng.uniform(-0.08, 0.16)
    jitter = (rng.standard_normal((n_berries, 2)) * 0.12 * radius).tolist()
    moved = [(x + middle_x + jx, y + middle_y + jy, z) for (x, y, z), (jx, jy) in zip(spots, jitter, strict=True)]
    return sorted(moved, key=lambda spot: spot[2]), radius, down


def _draw_bunch(scene: Scene, kind: Kind, n_berries: int) -> None:
    """Bunch of grapes on its stalk, or a pile of berries; all berries are shaded in one go."""
    loose = kind.pattern == "seeds"
    spots, radius, down = _bunch_spots(scene, kind, n_berries)
    level = [(x, y, radius * (1.0 if loose else 1.25)) for x, y, _ in spots]
    cast_shadow(scene, level if loose else level[::2])
    if not loose:
        _draw_stalk(scene, spots, radius, down)
    _paint_berries(scene, kind, spots, radius)


def _draw_stalk(scene: Scene, spots: Sequence[tuple[float, float, float]], radius: float, down: Reals) -> None:
    """Stalk above the first berry, often with a leaf; `down` is the bunch's direction."""
    rng, dx, dy = scene.rng, float(down[0]), float(down[1])
    x, y, _ = min(spots, key=lambda spot: spot[0] * dx + spot[1] * dy)
    bends = ((1.0, 0.0), (-0.8, 0.1), (-1.8, rng.uniform(-0.3, 0.3)), (-2.8, rng.uniform(-0.9, 0.9)))
    ends = [(x + (dx * t + dy * b) * radius, y + (dy * t - dx * b) * radius) for t, b in bends]
    if rng.random() < 0.6:
        turn = math.atan2(-dy, -dx) + (1.0 if rng.random() < 0.5 else -1.0) * rng.uniform(0.7, 1.2)
        tip = (ends[1][0] + 0.55 * math.cos(turn), ends[1][1] + 0.55 * math.sin(turn))
        paint_leaf(scene, (ends[1], tip), 0.2, (0.30, 0.50, 0.16))
    paint_stroke(scene, ends, (radius * 0.15, radius * 0.2), (0.42, 0.40, 0.16))


def _paint_berries(scene: Scene, kind: Kind, spots: Sequence[tuple[float, float, float]], radius: float) -> None:
    """Shade all berries in one go, then paint them from far to near, each darkening what it touches."""
    rng, n, count = scene.rng, scene.size_px, len(spots)
    span = max(2, math.ceil(radius * n / 2 * 1.3))
    grid = np.arange(-span, span + 1, dtype=np.float32)
    centre = (np.array([s[:2] for s in spots], np.float32) + 1.0) * np.float32(n / 2)
    whole = np.floor(centre)
    radii = (radius * rng.uniform(0.9, 1.1, count) * (n / 2)).astype(np.float32).reshape(-1, 1, 1)
    right = (grid[None, None, :] + 0.5 - (centre - whole)[:, 0].reshape(-1, 1, 1)) / radii
    stretch = np.float32(kind.stretch)
    lower = (grid[None, :, None] + 0.5 - (centre - whole)[:, 1].reshape(-1, 1, 1)) / (radii * stretch)
    square = right * right + lower * lower
    far = np.sqrt(square)
    alpha = np.clip((1.0 - far) * radii + 0.5, 0.0, 1.0)
    dark = 1.0 - 0.55 * smooth_step(far, 1.3, 0.8)
    normal = np.stack(
        [
            np.broadcast_to(right, square.shape),
            np.broadcast_to(lower, square.shape),
            np.sqrt(np.maximum(1.0 - square, 0.0)),
        ]
    )
    colour = _berry_colour(scene, kind, normal)
    for i in range(count):
        x, y = int(whole[i, 0]) - span, int(whole[i, 1]) - span
        y0, y1, x0, x1 = max(0, -y), min(2 * span + 1, n - y), max(0, -x), min(2 * span + 1, n - x)
        if y1 > y0 and x1 > x0:
            under = scene.canvas[:, y + y0 : y + y1, x + x0 : x + x1]
            under *= dark[i, y0:y1, x0:x1]
            under += alpha[i, y0:y1, x0:x1] * (colour[:, i, y0:y1, x0:x1] - under)


def _berry_colour(scene: Scene, kind: Kind, normal: Reals) -> Reals:
    rng, count = scene.rng, normal.shape[1]
    first, second, veil = (to_linear(c)[..., None] for c in kind.colours)
    start = rng.uniform(500.0, 900.0, (3, count, 1, 1)).astype(np.float32)
    cloud = solid_noise("soft", normal, (8.0, 8.0, 8.0), start, 0.1 * scene.size_px)
    tone = rng.random((count, 1, 1)).astype(np.float32)
    albedo = mix(first, second, tone) * (1.0 + 0.07 * cloud)
    cover = smooth_step(cloud + 0.5 * tone, -1.6, 2.2) * (kind.bloom * 0.75)
    gloss = kind.gloss * (1.0 - 0.7 * cover)
    if kind.pattern == "seeds":
        albedo = mix(albedo, veil, cover) * _crowns(normal, tone, rng)
        return shade(scene.light, normal, albedo, gloss, sharp=3)
    towards = scene.light.towards
    behind = np.maximum(0.25 - normal[0] * towards[0] - normal[1] * towards[1], 0.0)
    lit = shade(scene.light, normal, mix(albedo, veil, cover * 0.45), gloss, sharp=6, sheer=0.25)
    result: Reals = lit + np.square(1.0 - normal[2]) * behind * second * 0.9
    return result


def _crowns(normal: Reals, tone: Reals, rng: np.random.Generator) -> Reals:
    """Star-shaped crowns of blueberries, as a factor on their albedo."""
    count = normal.shape[1]
    drawn = rng.standard_normal((count, 3)) * [0.6, 0.6, 0.3] + [0, -0.3, 0.8]
    crown = np.stack([to_unit(v) for v in drawn], axis=1).reshape(3, count, 1, 1)
    facing = normal[0] * crown[0] + normal[1] * crown[1] + normal[2] * crown[2]
    side_x, side_y = normal[0] - crown[0] * facing, normal[1] - crown[1] * facing
    star = facing + np.cos(np.arctan2(side_y, side_x) * 5.0 + tone * 6.0) * 0.022
    ring = 1.0 - 0.45 * smooth_step(np.abs(star - 0.915), 0.05, 0.015)
    return ring * (1.0 - 0.7 * smooth_step(star, 0.935, 0.95))


def _spread(scene: Scene, n_things: int, radius: float) -> list[tuple[float, float]]:
    """Middles of things that touch or overlap a little, far ones first."""
    rng = scene.rng
    if n_things == 1:
        return [(rng.uniform(-0.16, 0.16), rng.uniform(-0.12, 0.18))]
    turn, ring = rng.uniform(0.0, 2 * math.pi), n_things
    around = radius * rng.uniform(0.93, 1.12) / math.sin(math.pi / ring)
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.05, 0.12)
    spots = []
    for i in range(ring):
        angle = turn + 2 * math.pi * i / ring + rng.uniform(-0.12, 0.12)
        spots.append((x + around * math.cos(angle), y + around * math.sin(angle) * (0.35 + 0.6 * scene.rise)))
    return sorted(spots, key=lambda spot: spot[1])


def draw_fruits(scene: Scene, kind: Kind) -> None:
    """Draw the fruits of one photo, as many as the kind's recipe says."""
    rng = scene.rng
    n_fruits = int(rng.integers(kind.n_fruits[0], kind.n_fruits[1] + 1))
    if kind.form == "banana":
        _draw_bananas(scene, kind, n_fruits)
    elif kind.form == "bunch":
        _draw_bunch(scene, kind, n_fruits)
    else:
        usual = {1: 0.60, 2: 0.47, 3: 0.41, 4: 0.36}.get(n_fruits, 0.32)
        radius = usual * rng.uniform(0.88, 1.1) * kind.scale
        for x, y in _spread(scene, n_fruits, radius):
            _draw_round(scene, kind, x, y, radius * rng.uniform(0.93, 1.07))
