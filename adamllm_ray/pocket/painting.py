"""Shapes and paint of general pictures: two regions, each in a named colour, with a pattern, a rough surface, a light.

Shapes are blobs, bays, holes and coasts. A coast has parts of every size, as what is seen in nature has; and a surface
may be as rough as ground is under a low sun, so that a tower has to tell a region from the shades inside it. Without
either, a tower counts the parts of plain blobs and nothing else (benchmarks/LOG.md, decision 0128).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adamllm_ray.pocket import language
from adamllm_ray.pocket.architecture import IMAGE_SIDE
from adamllm_ray.pocket.regions import Mask

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]
Light = tuple[str, float]  # the brighter half, and how much

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 50),
    "blue": (40, 70, 200),
    "yellow": (225, 210, 60),
    "white": (235, 235, 235),
    "black": (25, 25, 25),
    "gray": (128, 128, 128),
    "purple": (130, 50, 160),
    "orange": (235, 130, 30),
    "brown": (115, 75, 40),
    "pink": (240, 150, 190),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)
TOLD_APART = 30.0  # the least difference between the luminances of two colours of a picture
COAST_SHARE = 0.5  # of the pictures
COAST_CELLS, SURFACE_CELLS = (2, 4, 8, 16), (5, 10, 20, 30)  # a side, coarse to fine
PATTERN_DEPTH = 0.35  # how much darker a pattern is than what it is on
ROUGH_SHARE, ROUGHEST = 0.5, 1 / 3  # of the regions; the greatest mean difference from plain
_YY, _XX = np.mgrid[0:IMAGE_SIDE, 0:IMAGE_SIDE].astype(np.float32) / IMAGE_SIDE


def shape(random: np.random.Generator) -> Mask:
    """The front region of a picture: (60, 60), True inside."""
    return _coast(random) if random.random() < COAST_SHARE else _blobs(random)


def two_colours(random: np.random.Generator) -> tuple[str, str]:
    """Names of the front's and the back's colour."""
    while True:
        front, back = (list(COLOURS)[number] for number in random.choice(len(COLOURS), 2, replace=False))
        if abs(np.dot(np.subtract(COLOURS[front], COLOURS[back]), LUMINANCE)) >= TOLD_APART:
            return front, back


def light(random: np.random.Generator) -> Light | None:
    """A light over half of the pictures."""
    if random.random() < 0.5:
        return None
    return language.HALVES[random.integers(4)], float(random.uniform(0.35, 0.6))


def paint(mask: Mask, front: str, back: str, pattern: str, lit: Light | None, random: np.random.Generator) -> Pixels:
    """(60, 60, 3): regions in their colours, each as bright as it happens to be, under pattern, shades and light."""
    base = np.empty((IMAGE_SIDE, IMAGE_SIDE, 3), np.float32)
    for region, colour in ((mask, front), (~mask, back)):
        like = np.array(COLOURS[colour]) + random.normal(0, 12, 3)
        base[region] = np.clip(like * random.uniform(0.65, 1.1), 0, 255)
    base *= (1 - PATTERN_DEPTH * _pattern(pattern, random))[..., None]
    base *= (1 + 0.10 * _noise(random, 10))[..., None]
    for region in (mask, ~mask):
        if random.random() < ROUGH_SHARE:
            base[region] *= _surface(random)[region][:, None]
    base += random.normal(0, 4, base.shape)
    if lit:
        name, strength = lit
        axis = {"upper": 0.5 - _YY, "lower": _YY - 0.5, "left": 0.5 - _XX, "right": _XX - 0.5}[name]
        base *= (1 + strength * np.tanh(axis * 4) * 0.9)[..., None]
    return np.clip(base, 0, 255).astype(np.uint8)


def _blobs(random: np.random.Generator) -> Mask:
    """A half plane with a ragged edge, some blobs, or everything but some holes."""
    rough = _noise(random, 6) * 0.6 + _noise(random, 12) * 0.3
    kind = random.integers(4)
    if kind == 0:
        angle = random.choice([0, 0.5, 1.0, 1.5]) * np.pi + random.uniform(-0.5, 0.5)
        slope = (_XX - 0.5) * np.cos(angle) + (_YY - 0.5) * np.sin(angle)
        return slope * 2.2 + rough * 0.7 > random.uniform(-0.7, 0.7)
    parts = int(random.choice([1, 2, 3, 3, 4, 4]))  # some will touch
    blobs = np.full((IMAGE_SIDE, IMAGE_SIDE), -1.0, np.float32)
    for _ in range(parts):
        y, x = random.uniform(0.0 if kind == 2 else 0.15, 1.0 if kind == 2 else 0.85, 2)
        radius, stretch = random.uniform(0.08, 0.30 - 0.04 * parts), random.uniform(0.6, 1.6)
        distance = np.hypot((_YY - y) * stretch, (_XX - x) / stretch)
        blobs = np.maximum(blobs, 1 - distance / radius)
    region = blobs + rough * 0.35 > 0
    return ~region if kind == 3 else region


def _coast(random: np.random.Generator) -> Mask:
    """What lies above a level of fractal heights."""
    heights = _fractal(random, COAST_CELLS, random.uniform(0.45, 0.75))
    return heights > np.quantile(heights, random.uniform(0.15, 0.85))


def _surface(random: np.random.Generator) -> Field:
    """Brightness of a rough surface, 1 on average: fractal shades, or fractal heights under a light from one side."""
    heights = _fractal(random, SURFACE_CELLS, random.uniform(0.5, 0.9))
    angle = random.uniform(0, 2 * np.pi)
    if random.random() < 0.5:
        down, right = np.gradient(heights)
        heights = np.cos(angle) * right + np.sin(angle) * down
    shades = heights / np.abs(heights).mean()
    field: Field = np.clip(1 + random.uniform(0, ROUGHEST) * shades, 0.3, 2)
    return field


def _fractal(random: np.random.Generator, cells: tuple[int, ...], rough: float) -> Field:
    """Noise in octaves, each ``rough`` times as strong as the one before."""
    field = np.zeros((IMAGE_SIDE, IMAGE_SIDE), np.float32)
    for octave, one in enumerate(cells):
        field += _noise(random, one) * np.float32(rough**octave)
    return field


def _noise(random: np.random.Generator, cells: int) -> Field:
    """Smooth noise in about -1..1 with this many cells a side."""
    grid = random.uniform(-1, 1, (cells + 1, cells + 1))
    at = np.linspace(0, cells, IMAGE_SIDE, endpoint=False)
    low, part = at.astype(int), at - at.astype(int)
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    field: Field = (rows[:, low] * (1 - part) + rows[:, low + 1] * part).astype(np.float32)
    return field


def _pattern(name: str, random: np.random.Generator) -> Field:
    """1 where the pattern is dark."""
    pitch, phase = random.uniform(6, 9), random.uniform(0, 6.28, 2)
    x, y = _XX * IMAGE_SIDE / pitch * 6.28 + phase[0], _YY * IMAGE_SIDE / pitch * 6.28 + phase[1]
    if name == "striped":
        along = x if random.random() < 0.5 else y
        dark = np.sin(along) > 0
    elif name == "dotted":
        dark = (np.sin(x) > 0.3) & (np.sin(y) > 0.3)
    elif name == "checkered":
        dark = (np.sin(x) > 0) ^ (np.sin(y) > 0)
    else:
        dark = np.zeros_like(x, bool)
    field: Field = dark.astype(np.float32)
    return field
