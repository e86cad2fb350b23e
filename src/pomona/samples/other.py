"""Things that are not fruit: what a recogniser must answer "unknown" to.

In: a scene. Out: a mug, a phone, a ball, keys or a book, drawn on its canvas.
Why: a check of the photos can only be scored if some of them show no fruit, on the very same tables.
"""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import numpy as np

from pomona.samples.scene import (
    Colour,
    Reals,
    Scene,
    cast_shadow,
    mix,
    open_window,
    paint,
    paint_stroke,
    shade,
    smooth_step,
    to_linear,
    to_unit,
)
from pomona.samples.solid import outline_of, pose_about, trace_solid

if TYPE_CHECKING:
    from collections.abc import Callable


def draw_other(scene: Scene) -> None:
    """Draw one thing that is not a fruit."""
    _OTHERS[int(scene.rng.integers(len(_OTHERS)))](scene)


# ---------------------------------------------------------------------------------------------- not fruit


def _draw_patch(
    scene: Scene,
    middle: tuple[float, float],
    sides: tuple[Reals, Reals],
    face: Callable[[Reals, Reals], Reals],
    gloss: float,
) -> None:
    """Flat parallelogram of half sides (camera vectors); `face` colours coordinates in -1..1."""
    one, two = sides
    normal = to_unit(np.cross(one, two).astype(np.float32))
    normal = normal if normal[2] > 0 else -normal
    reach = [abs(float(one[i])) + abs(float(two[i])) + 3.0 / scene.size_px for i in (0, 1)]
    found, area = open_window(scene, *middle, reach[0], reach[1]), float(one[0] * two[1] - one[1] * two[0])
    if found is None or abs(area) < 1e-4:
        return
    part, right, down = found
    u = (right * float(two[1]) - down * float(two[0])) * (1.0 / area)
    v = (down * float(one[0]) - right * float(one[1])) * (1.0 / area)
    half = scene.size_px / 2
    wide, high = (abs(area) / math.hypot(float(s[0]), float(s[1])) * half for s in (two, one))
    alpha = np.clip((1.0 - np.abs(u)) * wide + 0.5, 0.0, 1.0) * np.clip((1.0 - np.abs(v)) * high + 0.5, 0.0, 1.0)
    normals = np.empty((3, *u.shape), np.float32)
    normals[...] = normal.reshape(3, 1, 1)
    paint(scene, part, alpha, shade(scene.light, normals, face(u, v), gloss))


def _draw_slab(
    scene: Scene,
    halves: tuple[float, float, float],
    faces: tuple[Callable[[Reals, Reals], Reals], Colour],
    gloss: float,
) -> None:
    """Box on the ground: half width, half depth, half height; what its top shows and the colour of its sides."""
    rng, light = scene.rng, scene.light
    turn, x, y = rng.uniform(0.0, 2 * math.pi), rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.15)
    right = np.array([1, 0, 0], np.float32)
    one = (right * np.float32(math.cos(turn)) + light.front * np.float32(math.sin(turn))) * np.float32(halves[0])
    two = (light.front * np.float32(math.cos(turn)) - right * np.float32(math.sin(turn))) * np.float32(halves[1])
    up = light.up * np.float32(halves[2])
    steps = [(-0.8, -0.6), (-0.8, 0.6), (0.0, 0.0), (0.8, -0.6), (0.8, 0.6)]
    cast_shadow(
        scene,
        [
            (x + float(one[0]) * a + float(two[0]) * b, y + float(one[1]) * a + float(two[1]) * b, 0.55 * halves[1])
            for a, b in steps
        ],
    )
    side = to_linear(faces[1])
    pages = to_linear((0.93, 0.91, 0.84))

    def edge(u: Reals, v: Reals) -> Reals:
        return side * np.ones_like(u + v)

    def paper(u: Reals, v: Reals) -> Reals:
        return mix(side, pages * (1.0 + 0.08 * np.sin(v * 40.0 + u * 0.3)), smooth_step(np.abs(v), 0.85, 0.75))

    for flank, across, look in ((one, two, edge), (-one, two, paper), (two, one, paper), (-two, one, paper)):
        if flank[2] > 0:
            _draw_patch(
                scene,
                (x + float(flank[0]), y + float(flank[1])),
                (across, up),
                look if halves[2] > 0.06 else edge,
                gloss,
            )
    _draw_patch(scene, (x + float(up[0]), y + float(up[1])), (one, two), faces[0], gloss)


def _draw_book(scene: Scene) -> None:
    rng = scene.rng
    cover = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.8))
    dye, ink, lines = to_linear(cover), to_linear((0.95, 0.90, 0.75)), rng.uniform(9.0, 14.0)

    def face(u: Reals, v: Reals) -> Reals:
        frame = smooth_step(np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.86), 0.03, 0.01)
        title = (
            smooth_step(np.sin(u * lines * 1.6), 0.0, 0.3)
            * smooth_step(np.abs(v), 0.6, 0.55)
            * smooth_step(np.abs(u + 0.4), 0.32, 0.28)
        )
        return mix(dye, ink, np.maximum(frame, title))

    _draw_slab(scene, (rng.uniform(0.5, 0.62), rng.uniform(0.36, 0.45), rng.uniform(0.07, 0.14)), (face, cover), 0.2)


def _draw_phone(scene: Scene) -> None:
    rng = scene.rng
    first, second = (to_linear(colorsys.hsv_to_rgb(rng.random(), 0.7, rng.uniform(0.3, 0.9))) for _ in range(2))
    black = to_linear((0.06, 0.06, 0.07))

    def face(u: Reals, v: Reals) -> Reals:
        screen = smooth_step(np.maximum(np.abs(u) * 1.0, np.abs(v) * 0.96), 0.92, 0.90)
        cell_u, cell_v = u * 4.0 - np.floor(u * 4.0) - 0.5, v * 2.2 - np.floor(v * 2.2) - 0.5
        icons = smooth_step(np.maximum(np.abs(cell_u), np.abs(cell_v)), 0.30, 0.26) * (np.abs(u + 0.15) < 0.72)
        glow = mix(mix(first, second, 0.5 + 0.5 * u), to_linear((0.95, 0.95, 0.97)), icons * 0.8)
        return mix(black, glow, screen)

    _draw_slab(scene, (rng.uniform(0.55, 0.7), rng.uniform(0.27, 0.33), 0.03), (face, (0.25, 0.25, 0.28)), 0.8)


def _draw_mug(scene: Scene) -> None:
    rng, light = scene.rng, scene.light
    x, y, r = rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.1), rng.uniform(0.32, 0.42)
    tall, squash = r * rng.uniform(1.6, 2.2) * max(0.35, -float(light.up[1])), scene.rise
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.95))
    cast_shadow(scene, [(x, y + tall / 2 - r * 0.5, r * 1.05)])
    hand = 1.0 if rng.random() < 0.5 else -1.0
    loop = [
        (x + hand * r * (0.85 + 0.62 * math.sin(a)), y - tall * 0.42 * math.cos(a))
        for a in np.linspace(0.1, 3.04, 9).tolist()
    ]
    paint_stroke(scene, loop, (r * 0.12, r * 0.12), colour)
    found = open_window(scene, x, y, r * 1.05, tall / 2 + r * squash * 1.05)
    if found is None:
        return
    part, right, down = found
    pixel, lean = scene.size_px / 2, np.clip(right * (1.0 / r), -1.0, 1.0)
    belly = np.sqrt(1.0 - lean * lean)
    alpha = np.clip((r - np.abs(right)) * pixel + 0.5, 0.0, 1.0) * np.clip(
        (tall / 2 + belly * (r * squash) - down) * pixel + 0.5, 0.0, 1.0
    )
    alpha = alpha * np.clip((down + tall / 2) * pixel + 0.5, 0.0, 1.0)
    normal = np.empty((3, *alpha.shape), np.float32)
    normal[0], normal[1], normal[2] = lean, belly * light.front[1], belly * light.front[2]
    band = smooth_step(np.sin((down - belly * (r * squash)) * rng.uniform(8.0, 16.0)), 0.5, 0.6) * (rng.random() < 0.5)
    glaze = to_linear(colour)
    paint(scene, part, alpha, shade(light, normal, mix(glaze, 0.9 - 0.4 * glaze, band), 0.6))
    far = np.sqrt(lean * lean + ((down + tall / 2) * (1.0 / (r * squash))) ** 2)
    inside = to_linear((0.22, 0.12, 0.06)) if rng.random() < 0.6 else glaze * 0.35
    rim = np.clip((1.0 - far) * (r * squash * pixel) + 0.5, 0.0, 1.0) * (np.abs(right) < r)
    paint(scene, part, rim, mix(glaze * 1.3 + 0.1, inside, smooth_step(far, 0.93, 0.86)) * light.key)


def _draw_ball(scene: Scene) -> None:
    """Football, beach ball or tennis ball."""
    rng = scene.rng
    x, y, r = rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.15), rng.uniform(0.42, 0.6)
    cast_shadow(scene, [(x, y, r)])
    found = open_window(scene, x, y, r * 1.03, r * 1.03)
    if found is None:
        return
    pose = pose_about(to_unit(rng.standard_normal(3)), rng)
    surface = trace_solid(
        outline_of("ball", 1.0), pose, found[1] * (1.0 / r), found[2] * (1.0 / r), pixel=2.0 / (scene.size_px * r)
    )
    place, style, white = surface.place, int(rng.integers(3)), to_linear((0.94, 0.94, 0.94))
    if style == 0:
        golden, patch = (1.0 + math.sqrt(5.0)) / 2.0, np.full(surface.alpha.shape, -1.0, np.float32)
        for a, b in ((1.0, golden), (1.0, -golden)):
            for i in range(3):
                patch = np.maximum(patch, np.abs(place[i] * a + place[(i + 1) % 3] * b))
        albedo = mix(
            white, to_linear((0.08, 0.08, 0.10)), smooth_step(patch * (1.0 / math.hypot(1.0, golden)), 0.915, 0.93)
        )
    elif style == 1:
        wedge = np.floor(np.arctan2(place[1], place[0]) * (3.0 / math.pi)).astype(np.int32) % 6
        dyes = (
            np.array(
                [(0.9, 0.1, 0.1), (0.95,) * 3, (0.1, 0.3, 0.85), (0.95,) * 3, (0.98, 0.8, 0.1), (0.95,) * 3], np.float32
            )
            ** 2
        )
        albedo = np.moveaxis(dyes[wedge], -1, 0)
    else:
        seam = np.abs(place[2] - 0.55 * np.cos(2.0 * np.arctan2(place[1], place[0])))
        albedo = mix(to_linear((0.80, 0.90, 0.20)), white, smooth_step(seam, 0.07, 0.04))
    paint(scene, found[0], surface.alpha, shade(scene.light, surface.normal, albedo, 0.1 if style == 2 else 0.5))


def _draw_keys(scene: Scene) -> None:
    rng = scene.rng
    x, y = rng.uniform(-0.3, 0.3), rng.uniform(-0.35, -0.1)
    ring = [(x + 0.17 * math.cos(a), y + 0.17 * math.sin(a)) for a in np.linspace(0.0, 2 * math.pi, 17).tolist()]
    first = rng.uniform(0.6, 1.8)
    for i in range(int(rng.integers(2, 5))):
        turn, metal = first + 0.55 * i - 0.4, ((0.80, 0.68, 0.36), (0.74, 0.75, 0.78))[int(rng.integers(2))]
        cos, sin = math.cos(turn), math.sin(turn)
        spots = [(x + cos * d - sin * o, y + sin * d + cos * o) for d, o in ((0.30, 0.0), (0.4, 0.0), (0.85, 0.0))]
        cast_shadow(scene, [(px, py, 0.07) for px, py in spots], strength=0.4)
        bow = [(0.28 + 0.11 * math.cos(a), 0.11 * math.sin(a)) for a in np.linspace(0.0, 2 * math.pi, 11).tolist()]
        head = [(x + cos * d - sin * o, y + sin * d + cos * o) for d, o in bow]
        paint_stroke(scene, head, (0.045, 0.045), metal)
        paint_stroke(scene, spots[1:], (0.036, 0.03), metal)
        for d in (0.62, 0.70, 0.78):
            length = rng.uniform(0.05, 0.09)
            paint_stroke(
                scene,
                [(x + cos * d, y + sin * d), (x + cos * d - sin * length, y + sin * d + cos * length)],
                (0.022, 0.022),
                metal,
            )
    paint_stroke(scene, ring, (0.022, 0.022), (0.72, 0.73, 0.76))


_OTHERS: tuple[Callable[[Scene], None], ...] = (_draw_mug, _draw_phone, _draw_ball, _draw_keys, _draw_book)
