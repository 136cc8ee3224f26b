"""Backgrounds of the scenes: skies, grounds and what stands far off, as smooth textures with a little noise.

All functions return float32 (size, size, 3) in 0..1 and are drawn at the final size: a background is out of focus
anyway, so that supersampling would only cost time.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from coreclip.pipeline.scene_world import SETTINGS

Colour = tuple[float, float, float]


def paint_background(setting: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the background ``setting`` as float32 (size, size, 3), 0..1, by plain daylight."""
    picture = _PAINTERS[setting](size, generator)
    assert picture.shape == (size, size, 3)
    return np.clip(picture, 0, 1, dtype=np.float32)


def noise(size: int, cells: tuple[int, int], generator: np.random.Generator, octaves: int = 2) -> np.ndarray:
    """Return smooth noise, float32 (size, size), mean 0 and about unit variance; ``cells`` = (rows, columns) of lumps."""
    total = np.zeros((size, size), dtype=np.float32)
    weight = 0.0
    for octave in range(octaves):
        rows, columns = (min(c << octave, size) + 1 for c in cells)
        lumps = Image.fromarray(generator.normal(size=(rows, columns)).astype(np.float32))
        total += np.asarray(lumps.resize((size, size), Image.Resampling.BICUBIC)) * 0.6**octave
        weight += 0.36**octave
    return total / np.float32(np.sqrt(weight) * 0.75)


def _vertical(size: int, top: Colour, bottom: Colour) -> np.ndarray:
    t = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    stripe = np.asarray(top, dtype=np.float32) * (1 - t) + np.asarray(bottom, dtype=np.float32) * t
    return np.broadcast_to(stripe, (size, size, 3)).copy()


def _sky(
    size: int, generator: np.random.Generator, top: Colour = (0.36, 0.58, 0.86), low: Colour = (0.80, 0.88, 0.95)
) -> np.ndarray:
    sky = _vertical(size, top, low)
    cloud = np.clip(noise(size, (5, 3), generator, 3) - generator.uniform(-0.2, 0.9), 0, 1.2)[..., None] * 0.55
    return sky * (1 - cloud) + cloud * np.float32(0.97)


def _ground(
    size: int,
    horizon: float,
    near: Colour,
    far: Colour,
    generator: np.random.Generator,
    lumps: int = 10,
    contrast: float = 0.1,
) -> np.ndarray:
    """Return a ground in perspective below ``horizon`` (above it: the far colour)."""
    y = np.linspace(0, 1, size, dtype=np.float32)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    base = (
        np.asarray(far, dtype=np.float32) * (1 - depth[:, None]) + np.asarray(near, dtype=np.float32) * depth[:, None]
    )
    texture = noise(size, (lumps, max(lumps // 3, 2)), generator, 3)
    rows = ((depth**0.55) * (size - 1)).astype(int)  # the far rows are crowded together
    texture = texture[rows] * (0.35 + 0.65 * depth)[:, None]
    return np.asarray(base[:, None, :] * (1 + contrast * texture[..., None]), dtype=np.float32)


def _join(above: np.ndarray, below: np.ndarray, edge: np.ndarray | float, softness: float = 0.012) -> np.ndarray:
    """Lay ``below`` over ``above`` from the height ``edge`` (a fraction, per column or for all) downwards."""
    size = above.shape[0]
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    mask = np.clip((y - np.asarray(edge, dtype=np.float32)) / softness + 0.5, 0, 1)[..., None]
    return above * (1 - mask) + below * mask


def _ridge(size: int, level: float, height: float, generator: np.random.Generator, cells: int = 6) -> np.ndarray:
    """Return a skyline, float32 (size,): heights as fractions of the picture."""
    return level - height * np.abs(noise(size, (1, cells), generator, 3)[0])


def _flat(size: int, colour: Colour, generator: np.random.Generator, contrast: float = 0.05) -> np.ndarray:
    field = np.broadcast_to(np.asarray(colour, dtype=np.float32), (size, size, 3))
    return field * (1 + contrast * noise(size, (8, 8), generator)[..., None])


def _drawn(picture: np.ndarray, draw: Callable[[ImageDraw.ImageDraw, int], None], blur: float) -> np.ndarray:
    """Return ``picture`` with what ``draw`` draws on it, blurred; ``draw`` gets a pen and the side in pixels."""
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    draw(ImageDraw.Draw(image), picture.shape[0])
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / 255


def _rgb(*values: float) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(v * 255, 0, 255)) for v in values)
    return r, g, b


def _meadow(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["meadow"].horizon
    far = _join(_sky(size, g), _flat(size, (0.24, 0.38, 0.24), g, 0.15), _ridge(size, horizon, 0.07, g, 9), 0.03)
    return _join(far, _ground(size, horizon, (0.30, 0.50, 0.16), (0.56, 0.68, 0.34), g, 24, 0.16), horizon)


def _beach(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["beach"].horizon
    sea = _ground(size, horizon - 0.16, (0.26, 0.60, 0.68), (0.12, 0.36, 0.58), g, 30, 0.09)
    sand = _ground(size, horizon, (0.88, 0.78, 0.58), (0.92, 0.85, 0.70), g, 18, 0.05)
    shore = horizon + 0.02 * noise(size, (1, 3), g)[0]
    water = _join(_sky(size, g), sea, horizon - 0.16)
    foam = _join(water, _flat(size, (0.95, 0.97, 0.97), g, 0.02), shore - 0.025, 0.02)
    return _join(foam, sand, shore, 0.015)


def _table(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["kitchen"].horizon
    tile = (0.80 + g.uniform(-0.06, 0.06), 0.83, 0.80 + g.uniform(-0.06, 0.08))
    wall = _flat(size, tile, g, 0.03)
    step = size * g.uniform(0.14, 0.2)

    def joints(pen: ImageDraw.ImageDraw, side: int) -> None:
        for i in range(int(side / step) + 1):
            pen.line((0, i * step, side, i * step), fill=_rgb(0.66, 0.68, 0.66))
            pen.line((i * step, 0, i * step, side), fill=_rgb(0.66, 0.68, 0.66))
        x, w = side * g.uniform(0.05, 0.6), side * 0.3
        pen.rectangle((x, 0, x + w, side * 0.3), fill=_rgb(0.93, 0.95, 0.92))

    wall = _drawn(wall, joints, size / 90)
    return _join(wall, _planks(size, horizon, (0.56, 0.36, 0.20), g), horizon, 0.02)


def _planks(size: int, horizon: float, colour: Colour, g: np.random.Generator) -> np.ndarray:
    """Return a wooden surface whose boards run towards the eye."""
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size, dtype=np.float32)[None, :]
    depth = np.clip((y - horizon) / (1 - horizon), 0.0, 1)
    across = x / (0.5 + depth) * g.uniform(3.0, 4.5) + 20
    board = np.floor(across).astype(int)
    tone = 1 + 0.10 * g.normal(size=64)[board % 64]
    seam = np.clip(np.abs(across - board - 0.5) * 40 - 18.6, 0, 1)
    fibre = noise(size, (3, 30), g)
    shade = (tone + 0.05 * fibre) * (1 - 0.4 * seam) * (0.85 + 0.25 * depth)
    return np.asarray(np.asarray(colour, dtype=np.float32) * shade[..., None], dtype=np.float32)


def _snow(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["snow"].horizon
    sky = _sky(size, g, (0.60, 0.72, 0.86), (0.88, 0.91, 0.95))

    def firs(pen: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(int(g.integers(6, 14))):
            x, h = g.uniform(0, side), side * g.uniform(0.08, 0.22)
            base = side * (horizon + 0.02)
            pen.polygon(
                (x, base - h, x - h * 0.28, base, x + h * 0.28, base), fill=_rgb(0.22, 0.30 + g.uniform(0, 0.08), 0.30)
            )

    far = _drawn(sky, firs, size / 90)
    edge = horizon + 0.015 * noise(size, (1, 4), g)[0]
    return _join(far, _ground(size, horizon, (0.93, 0.95, 0.98), (0.84, 0.88, 0.94), g, 8, 0.035), edge, 0.02)


def _street(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["street"].horizon
    picture = _drawn(_sky(size, g), _houses(horizon, 0.0, g), size / 110)
    pavement = _ground(size, horizon, (0.62, 0.61, 0.58), (0.68, 0.67, 0.65), g, 20, 0.04)
    road = _ground(size, horizon + 0.1, (0.33, 0.33, 0.35), (0.42, 0.42, 0.44), g, 40, 0.07)
    return _join(_join(picture, pavement, horizon), road, horizon + 0.1)


def _houses(horizon: float, dark: float, g: np.random.Generator) -> Callable[[ImageDraw.ImageDraw, int], None]:
    """Return a painter of a row of town houses; ``dark`` = 1 at night, with some windows lit."""

    def draw(pen: ImageDraw.ImageDraw, side: int) -> None:
        x = -side * g.uniform(0, 0.15)
        while x < side:
            w, h = side * g.uniform(0.16, 0.30), side * horizon * g.uniform(0.55, 0.98)
            wall = np.array([0.62, 0.54, 0.48]) + g.uniform(-0.16, 0.16) + g.uniform(-0.05, 0.05, 3)
            pen.rectangle((x, side * horizon - h, x + w - 1, side * horizon), fill=_rgb(*(wall * (1 - 0.8 * dark))))
            cell = side * 0.065
            for column in np.arange(x + cell * 0.5, x + w - cell * 0.8, cell):
                for row in np.arange(side * horizon - h + cell * 0.6, side * horizon - cell, cell * 1.3):
                    lit = g.random() < 0.35 * dark
                    pane = _rgb(1.0, 0.82, 0.45) if lit else _rgb(*(np.array([0.34, 0.42, 0.50]) * (1 - 0.7 * dark)))
                    pen.rectangle((column, row, column + cell * 0.5, row + cell * 0.75), fill=pane)
            x += w

    return draw


def _night_street(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["night street"].horizon
    picture = _drawn(_vertical(size, (0.03, 0.04, 0.10), (0.12, 0.11, 0.18)), _houses(horizon, 1.0, g), size / 80)
    road = _ground(size, horizon, (0.12, 0.12, 0.15), (0.16, 0.15, 0.18), g, 30, 0.15)
    picture = _join(picture, road, horizon)
    return np.clip(picture + _bokeh(size, horizon, g), 0, 1)


def _bokeh(size: int, horizon: float, g: np.random.Generator) -> np.ndarray:
    """Return the glow of street lamps with their reflections on the wet ground, to be added."""
    lamps = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(lamps)
    for _ in range(int(g.integers(4, 9))):
        x, y, r = g.uniform(0, size), size * g.uniform(0.12, horizon), size * g.uniform(0.02, 0.05)
        hue = (_rgb(0.85, 0.6, 0.25), _rgb(0.75, 0.2, 0.15), _rgb(0.35, 0.55, 0.75), _rgb(0.8, 0.75, 0.6))[
            int(g.integers(4))
        ]
        pen.ellipse((x - r, y - r, x + r, y + r), fill=hue)
        mirrored = size * horizon + (size * horizon - y) * 0.5
        faint = (hue[0] // 3, hue[1] // 3, hue[2] // 3)
        pen.ellipse((x - r * 0.7, mirrored, x + r * 0.7, mirrored + 5 * r), fill=faint)
    return np.asarray(lamps.filter(ImageFilter.GaussianBlur(size / 75)), dtype=np.float32) / 255


def _forest(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["forest"].horizon
    picture = _flat(size, (0.26, 0.40, 0.22), g, 0.35) + np.clip(noise(size, (9, 9), g) - 1.2, 0, 1)[..., None] * 0.35

    def trunks(pen: ImageDraw.ImageDraw, side: int) -> None:
        for _ in range(int(g.integers(6, 12))):
            x, w, tone = g.uniform(0, side), side * g.uniform(0.015, 0.05), g.uniform(0.10, 0.26)
            pen.polygon(
                (x, 0, x + w, 0, x + w * 1.3, side, x - w * 0.3, side), fill=_rgb(tone * 1.15, tone, tone * 0.75)
            )

    picture = _drawn(picture, trunks, size / 80)
    return _join(picture, _ground(size, horizon, (0.34, 0.27, 0.14), (0.26, 0.30, 0.15), g, 30, 0.25), horizon, 0.08)


def _desert(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["desert"].horizon
    picture = _sky(size, g, (0.40, 0.62, 0.88), (0.92, 0.88, 0.78))
    for level, tone in ((horizon, 0.86), (horizon + 0.08, 1.0)):
        dune = _ground(
            size,
            level - 0.05,
            (0.86 * tone, 0.66 * tone, 0.40 * tone),
            (0.92 * tone, 0.76 * tone, 0.52 * tone),
            g,
            6,
            0.05,
        )
        picture = _join(picture, dune, _ridge(size, level, 0.07, g, 2))
    return picture


def _lake(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["lake"].horizon
    hills = _join(_sky(size, g), _flat(size, (0.30, 0.42, 0.40), g, 0.1), _ridge(size, horizon, 0.12, g, 3), 0.02)
    water = _ground(size, horizon, (0.16, 0.36, 0.48), (0.50, 0.66, 0.74), g, 34, 0.12)
    return _join(hills, water, horizon)


def _mountains(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["mountains"].horizon
    picture = _sky(size, g)
    for level, height, tone in ((horizon - 0.12, 0.26, 0.62), (horizon - 0.03, 0.16, 0.44)):
        ridge = _ridge(size, level, height, g, 4)
        rock = _flat(size, (tone, tone * 1.05, tone * 1.14), g, 0.08)
        y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
        cap = np.clip((level - height * 0.75 - y) / 0.05 + 0.3 * noise(size, (9, 9), g), 0, 1)[..., None]
        picture = _join(picture, rock * (1 - cap) + cap * np.float32(0.95), ridge, 0.015)
    return _join(picture, _ground(size, horizon, (0.40, 0.44, 0.24), (0.48, 0.52, 0.36), g, 22, 0.15), horizon, 0.02)


def _living_room(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["living room"].horizon
    tint: Colour = ((0.86, 0.80, 0.68), (0.70, 0.78, 0.80), (0.80, 0.72, 0.72), (0.76, 0.80, 0.68))[int(g.integers(4))]
    wall = _flat(size, tint, g, 0.02)

    def furnish(pen: ImageDraw.ImageDraw, side: int) -> None:
        x, y, w, h = side * g.uniform(0.05, 0.65), side * g.uniform(0.06, 0.16), side * g.uniform(0.2, 0.3), side * 0.3
        pen.rectangle((x, y, x + w, y + h), fill=_rgb(0.95, 0.95, 0.93))
        pen.rectangle((x + 2, y + 2, x + w - 2, y + h - 2), fill=_rgb(*g.uniform(0.35, 0.85, 3)))
        pen.rectangle((0, side * horizon - side * 0.03, side, side * horizon), fill=_rgb(0.93, 0.92, 0.90))

    wall = _drawn(wall, furnish, size / 110)
    return _join(wall, _planks(size, horizon, (0.68, 0.50, 0.32), g), horizon)


def _garden(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["garden"].horizon
    picture = _join(
        _sky(size, g), _flat(size, (0.20, 0.38, 0.18), g, 0.22), 0.22 + 0.02 * noise(size, (1, 12), g)[0], 0.03
    )

    def blossoms(pen: ImageDraw.ImageDraw, side: int) -> None:
        hue = _rgb(*((0.95, 0.55, 0.70), (0.98, 0.95, 0.9), (0.95, 0.8, 0.3), (0.75, 0.5, 0.85))[int(g.integers(4))])
        for _ in range(45):
            x, y, r = g.uniform(0, side), side * g.uniform(0.25, horizon), side * g.uniform(0.006, 0.016)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=hue)

    picture = _drawn(picture, blossoms, size / 100)
    return _join(picture, _ground(size, horizon, (0.34, 0.56, 0.20), (0.42, 0.60, 0.26), g, 40, 0.1), horizon)


def _brick_wall(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["brick wall"].horizon
    brick = np.array([0.60, 0.32, 0.24]) * g.uniform(0.8, 1.15)

    def bricks(pen: ImageDraw.ImageDraw, side: int) -> None:
        h, w = side * 0.055, side * 0.14
        for row in range(int(side * horizon / h) + 1):
            for column in range(-1, int(side / w) + 1):
                x = column * w + (row % 2) * w / 2
                pen.rectangle((x, row * h, x + w - 1.5, row * h + h - 1.5), fill=_rgb(*(brick * g.uniform(0.82, 1.18))))

    wall = _drawn(_flat(size, (0.66, 0.62, 0.57), g), bricks, size / 180)
    ground = _ground(size, horizon, (0.55, 0.54, 0.52), (0.46, 0.45, 0.44), g, 20, 0.06)
    return _join(wall * (1 + 0.05 * noise(size, (4, 4), g)[..., None]), ground, horizon)


def _stage(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["stage"].horizon
    x = np.linspace(0, 1, size, dtype=np.float32)[None, :]
    fold = 0.5 + 0.5 * np.sin(2 * np.pi * (x * g.uniform(6, 10) + 0.08 * noise(size, (2, 6), g)))
    curtain = np.asarray((0.56, 0.07, 0.10), dtype=np.float32) * (0.35 + 0.65 * fold)[..., None]
    return _join(curtain.astype(np.float32), _planks(size, horizon, (0.46, 0.30, 0.18), g), horizon)


def _underwater(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["underwater"].horizon
    water = _vertical(size, (0.30, 0.72, 0.80), (0.04, 0.26, 0.44))
    x = np.linspace(-0.5, 0.5, size, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    rays = np.clip(np.sin((x / (0.5 + y)) * g.uniform(22, 34) + g.uniform(0, 6)), 0, 1) * (1 - y) * 0.22
    edge = horizon + 0.03 * noise(size, (1, 4), g)[0]
    sand = _ground(size, horizon, (0.52, 0.62, 0.52), (0.22, 0.44, 0.50), g, 12, 0.1)
    return _join(water + rays[..., None], sand, edge, 0.05)


def _moon(size: int, g: np.random.Generator) -> np.ndarray:
    horizon = SETTINGS["moon"].horizon
    sky = _vertical(size, (0.01, 0.01, 0.03), (0.03, 0.03, 0.06))
    n_stars = size
    sky[g.integers(0, size, n_stars), g.integers(0, size, n_stars)] += g.uniform(0.2, 0.9, (n_stars, 1)).astype(
        np.float32
    )

    def earth(pen: ImageDraw.ImageDraw, side: int) -> None:
        x, y, r = side * g.uniform(0.15, 0.85), side * g.uniform(0.12, 0.3), side * 0.07
        pen.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(0.30, 0.52, 0.82))
        pen.ellipse((x - r * 0.6, y - r * 0.7, x + r * 0.3, y + r * 0.1), fill=_rgb(0.75, 0.85, 0.88))

    sky = _drawn(sky, earth, size / 250)
    ground = _ground(size, horizon, (0.58, 0.58, 0.57), (0.44, 0.44, 0.45), g, 14, 0.22)
    return _join(sky, ground, _ridge(size, horizon, 0.03, g, 4))


_PAINTERS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "meadow": _meadow, "beach": _beach, "kitchen": _table, "street": _street, "snow": _snow, "forest": _forest,
    "living room": _living_room, "night street": _night_street, "lake": _lake, "desert": _desert,
    "mountains": _mountains, "garden": _garden, "brick wall": _brick_wall, "stage": _stage,
    "underwater": _underwater, "moon": _moon,
}  # fmt: skip
