"""From a scene to a photograph-like picture: layout, shadows, weather and light, and a camera with its faults.

Objects are drawn with supersampling, shaded as bodies and laid over the background from back to front; the camera
adds focus, exposure, white balance, vignetting and sensor noise. Perspective, refraction and true shadows are left out.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from coreclip.pipeline.scene_backgrounds import noise, paint_background
from coreclip.pipeline.scene_objects import paint_object
from coreclip.pipeline.scene_world import BESIDE, DEPTH, HEIGHT, KINDS, SETTINGS, SIZES, Group, Scene

_LIGHTS: dict[str, tuple[float, float, float]] = {
    "clear": (1.0, 1.0, 1.0), "cloudy": (0.86, 0.88, 0.92), "sunset": (1.10, 0.80, 0.58), "foggy": (0.95, 0.96, 0.97),
    "rainy": (0.70, 0.75, 0.82), "night": (0.34, 0.39, 0.56), "snowing": (0.90, 0.93, 0.98), "lamplit": (1.04, 0.80, 0.52),
    "dim": (0.46, 0.44, 0.46),
}  # fmt: skip


class _Placed(NamedTuple):
    """One object: the middle of its foot and its height as fractions of the picture."""

    group: Group
    x: float
    foot: float
    height: float


def render(scene: Scene, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return the picture of ``scene`` as uint8 (size, size, 3); a pure function of the arguments' values."""
    canvas = paint_background(scene.setting, size, generator)
    canvas = _blur(canvas, generator.uniform(0.0, 0.012) * size)
    depth = np.zeros((size, size), dtype=np.float32)
    for placed in _layout(scene, generator):
        _lay(canvas, depth, placed, generator)
    canvas = _weather(canvas, depth, scene, generator)
    return _camera(canvas, scene, generator)


def encode_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Return uint8 (h, w, 3) as JPEG bytes without metadata."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def alter(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a near-duplicate: cut a little narrower, brighter or darker, scaled back to the same size."""
    size = picture.shape[0]
    side = size * generator.uniform(0.88, 0.96)
    left, top = generator.uniform(0, size - side, 2)
    box = (left, top, left + side, top + side)
    cut = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box=box)
    values = np.asarray(cut, dtype=np.float32) * generator.uniform(0.82, 1.18) + generator.uniform(-10, 10)
    return np.clip(values, 0, 255).astype(np.uint8)


def _layout(scene: Scene, generator: np.random.Generator) -> list[_Placed]:
    """Return all objects with their places, from back to front."""
    horizon = SETTINGS[scene.setting].horizon
    if len(scene.groups) == 1:
        return _row(scene.groups[0], (0.06, 0.94), horizon, generator)
    first, second = scene.groups
    if scene.relation in BESIDE:
        left, right = (first, second) if scene.relation == "left of" else (second, first)
        placed = _row(left, (0.03, 0.48), horizon, generator) + _row(right, (0.52, 0.97), horizon, generator)
        return sorted(placed, key=lambda p: p.foot)
    if scene.relation in DEPTH:
        front, back = (first, second) if scene.relation == "in front of" else (second, first)
        return _one_before_the_other(front, back, horizon, generator)
    if scene.relation in HEIGHT:
        high, low = (first, second) if scene.relation == "above" else (second, first)
        return _one_above_the_other(high, low, generator)
    return _one_on_the_other(first, second, horizon, generator)


def _row(group: Group, span: tuple[float, float], horizon: float, generator: np.random.Generator) -> list[_Placed]:
    """Place a group side by side within ``span``; four and more stand in two ranks."""
    count, aspect = group.count, KINDS[group.kind].aspect
    ranks = 2 if count > 3 or (count == 3 and span[1] - span[0] < 0.6) else 1
    across = -(-count // ranks)
    cell = (span[1] - span[0]) / across
    height = min(SIZES[group.size] * generator.uniform(0.92, 1.1), 0.94 * cell / aspect, 0.8 if ranks == 1 else 0.34)
    near = min(max(generator.uniform(horizon + 0.12, 0.94), height + 0.04), 0.97)
    if KINDS[group.kind].floats:
        near = generator.uniform(max(height * (1.15 if ranks == 2 else 1) + 0.06, 0.3), 0.82)
    placed = []
    for i in range(count):
        rank, column = divmod(i, across)
        in_rank = min(across, count - rank * across)
        x = (span[0] + span[1]) / 2 + (column - (in_rank - 1) / 2) * cell
        slack = max(cell - height * aspect, 0.0)
        foot = near - rank * min(height * 1.04, 0.32) * (1.0 if KINDS[group.kind].floats else 0.72)
        placed.append(
            _Placed(group, x + generator.uniform(-0.4, 0.4) * slack, foot + generator.uniform(-0.02, 0.02), height)
        )
    return sorted(placed, key=lambda p: p.foot)


def _one_before_the_other(front: Group, back: Group, horizon: float, generator: np.random.Generator) -> list[_Placed]:
    middle = generator.uniform(0.38, 0.62)
    behind = _about(back, middle, 0.9, horizon + generator.uniform(0.04, 0.10), 1.25, generator)
    shift = generator.uniform(0.10, 0.18) * generator.choice((-1.0, 1.0))
    before = _about(front, middle + shift, 0.8, min(horizon + generator.uniform(0.26, 0.34), 0.97), 0.95, generator)
    return behind + before


def _one_above_the_other(high: Group, low: Group, generator: np.random.Generator) -> list[_Placed]:
    middle = generator.uniform(0.4, 0.6)
    under = _about(low, middle, 0.9, generator.uniform(0.90, 0.96), 0.9, generator, ceiling=0.42)
    over = _about(high, middle, 0.9, generator.uniform(0.40, 0.46), 0.9, generator, ceiling=0.38)
    return over + under


def _one_on_the_other(top: Group, base: Group, horizon: float, generator: np.random.Generator) -> list[_Placed]:
    middle, foot = generator.uniform(0.35, 0.65), generator.uniform(max(horizon + 0.2, 0.8), 0.96)
    (below,) = _about(base, middle, 0.7, foot, 1.1, generator, ceiling=0.44)
    surface = foot - below.height * (1 - (KINDS[base.kind].support or 0.0))
    return [
        below,
        *_about(
            top,
            middle,
            min(below.height * KINDS[base.kind].aspect * 1.1, 0.7),
            surface,
            0.8,
            generator,
            ceiling=surface - 0.03,
        ),
    ]


def _about(
    group: Group,
    middle: float,
    width: float,
    foot: float,
    scale: float,
    generator: np.random.Generator,
    ceiling: float = 0.7,
) -> list[_Placed]:
    """Place a group side by side around ``middle``, not wider than ``width`` nor higher than ``ceiling``."""
    aspect = KINDS[group.kind].aspect
    height = min(
        SIZES[group.size] * scale * generator.uniform(0.95, 1.1), width / (group.count * aspect), ceiling, foot - 0.02
    )
    step = height * aspect * 1.04
    return [_Placed(group, middle + (i - (group.count - 1) / 2) * step, foot, height) for i in range(group.count)]


def _lay(canvas: np.ndarray, depth: np.ndarray, placed: _Placed, generator: np.random.Generator) -> None:
    """Draw one object and its shadow on ``canvas`` (changed in place) and mark where it is in ``depth``."""
    size = canvas.shape[0]
    colour, alpha = paint_object(placed.group, placed.height * size, generator)
    h, w = alpha.shape
    x, y = round(placed.x * size - w / 2), round(placed.foot * size - h)
    if not KINDS[placed.group.kind].floats:
        _shadow(canvas, placed.x * size, placed.foot * size, w, generator)
    rows, columns = slice(max(y, 0), min(y + h, size)), slice(max(x, 0), min(x + w, size))
    colour = colour[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
    cover = alpha[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x, None]
    canvas[rows, columns] = canvas[rows, columns] * (1 - cover) + colour * cover
    depth[rows, columns] = np.maximum(depth[rows, columns], cover[..., 0])


def _shadow(canvas: np.ndarray, x: float, y: float, width: int, generator: np.random.Generator) -> None:
    size = canvas.shape[0]
    mask = Image.new("L", (size, size), 0)
    reach, flat = width * 0.52, max(width * 0.11, 1.5)
    lean = width * generator.uniform(-0.18, 0.18)
    ImageDraw.Draw(mask).ellipse((x - reach + lean, y - flat, x + reach + lean, y + flat), fill=150)
    shade = np.asarray(mask.filter(ImageFilter.GaussianBlur(max(width * 0.05, 1.0))), dtype=np.float32) / 255
    canvas *= 1 - 0.85 * shade[..., None]


def _weather(canvas: np.ndarray, depth: np.ndarray, scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """Return the scene under its light; ``depth`` (1 on objects) keeps the fog behind them."""
    size = canvas.shape[0]
    light = np.asarray(_LIGHTS[scene.light], dtype=np.float32)
    if scene.setting == "underwater":
        light = np.asarray((0.62, 0.92, 1.0), dtype=np.float32)
    elif scene.setting == "night street":
        light = light * np.where(depth[..., None] > 0, np.float32(0.85), np.float32(1.0))
    canvas = canvas * light
    if scene.light == "foggy":
        y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
        veil = np.clip(0.85 - 0.55 * y, 0, 1) * (1 - 0.62 * depth) * (1 + 0.1 * noise(size, (4, 3), generator))
        tone = 0.25 if scene.setting == "night street" else 0.86
        canvas = canvas * (1 - veil[..., None]) + tone * veil[..., None]
    elif scene.light == "sunset":
        glow = np.exp(
            -((np.linspace(0, 1, size, dtype=np.float32) - SETTINGS[scene.setting].horizon + 0.08) ** 2) / 0.02
        )
        canvas = canvas + glow[:, None, None] * (1 - 0.9 * depth[..., None]) * np.array(
            (0.34, 0.12, -0.04), dtype=np.float32
        )
    elif scene.light in ("rainy", "snowing"):
        canvas = canvas + _falling(size, scene.light, generator)[..., None]
    elif scene.light in ("lamplit", "dim", "night"):
        canvas = canvas * _pool_of_light(size, generator)[..., None]
    return np.asarray(canvas, dtype=np.float32)


def _falling(size: int, light: str, generator: np.random.Generator) -> np.ndarray:
    """Return the streaks of rain or the flakes of snow, to be added."""
    mask = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(mask)
    n = 70
    for x, y, r in zip(
        generator.uniform(0, size, n), generator.uniform(-5, size, n), generator.uniform(0.5, 1, n), strict=True
    ):
        if light == "rainy":
            pen.line((x, y, x - 0.02 * size, y + 0.10 * size * r), fill=int(90 * r))
        else:
            pen.ellipse((x, y, x + 0.022 * size * r, y + 0.022 * size * r), fill=int(235 * r))
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(size / 220)), dtype=np.float32) / 255


def _pool_of_light(size: int, generator: np.random.Generator) -> np.ndarray:
    x = np.linspace(0, 1, size, dtype=np.float32)[None, :] - generator.uniform(0.3, 0.7)
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None] - generator.uniform(0.3, 0.6)
    return np.asarray(0.65 + 0.6 * np.exp(-(x**2 + y**2) / 0.18), dtype=np.float32)


def _camera(canvas: np.ndarray, scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """Return what a middling camera makes of the light: uint8 (size, size, 3)."""
    size = canvas.shape[0]
    canvas = canvas * generator.normal(1, 0.03, 3).astype(np.float32) * generator.uniform(0.88, 1.1)
    centre = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    canvas = canvas * (1 - generator.uniform(0.05, 0.16) * (centre[:, None] + centre[None, :]))[..., None]
    canvas = _blur(canvas, generator.choice((0.0, 0.0, 0.5, 0.8)) * size / 96)
    dark = scene.light in ("night", "dim", "lamplit") or scene.setting == "night street"
    strength = generator.uniform(0.005, 0.014) * (2.0 if dark else 1.0)
    # Sensors' noise is coarser in colour than in brightness.
    grey, coloured = (generator.standard_normal((size, size, c), dtype=np.float32) for c in (1, 3))
    bright = np.clip(canvas + np.float32(strength) * (grey + np.float32(0.6) * coloured), 0, 1)
    contrast = generator.uniform(0.0, 0.35)
    bright = bright * (1 - contrast) + contrast * bright * bright * (3 - 2 * bright)
    return np.asarray(bright * 255 + 0.5, dtype=np.float32).astype(np.uint8)


def _blur(canvas: np.ndarray, radius: float) -> np.ndarray:
    if radius < 0.3:
        return canvas
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(radius))), dtype=np.float32) / 255
