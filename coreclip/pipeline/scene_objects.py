"""Objects of the scenes: silhouettes as tables of primitives, drawn with colour, pattern, volume and gloss.

Each kind is a list of (primitive, ink, numbers) in a unit box, y downwards, standing on y = 1. The ink ``main`` takes
the object's colour and pattern, ``shade`` and ``tint`` are darker and lighter relatives of it, the others are fixed.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from coreclip.pipeline.scene_world import COLOURS, KINDS, Group

_OVERSAMPLING = 3
_INKS: dict[str, tuple[int, int, int]] = {
    "dark": (44, 42, 46), "wood": (118, 82, 50), "metal": (168, 172, 180), "glass": (176, 206, 224),
    "cream": (238, 226, 200), "leaf": (70, 124, 52), "flame": (255, 190, 60), "white": (240, 240, 238), "gold": (204, 164, 60),
}  # fmt: skip
Part = tuple[str, str, tuple[float, ...]]

_SHAPES: dict[str, list[Part]] = {
    "ball": [("ellipse", "main", (0, 0, 1, 1))],
    "car": [
        ("polygon", "main", (0.18, 0.45, 0.32, 0.08, 0.72, 0.08, 0.86, 0.45)),
        ("polygon", "glass", (0.26, 0.42, 0.36, 0.15, 0.50, 0.15, 0.50, 0.42)),
        ("polygon", "glass", (0.54, 0.42, 0.54, 0.15, 0.69, 0.15, 0.78, 0.42)),
        ("round", "main", (0.1, 0, 0.4, 1, 0.82)), ("box", "shade", (0.02, 0.70, 0.98, 0.78)),
        ("ellipse", "dark", (0.13, 0.6, 0.36, 1)), ("ellipse", "dark", (0.64, 0.6, 0.87, 1)),
        ("ellipse", "metal", (0.19, 0.71, 0.30, 0.89)), ("ellipse", "metal", (0.70, 0.71, 0.81, 0.89)),
        ("ellipse", "cream", (0.93, 0.47, 0.99, 0.60)),
    ],
    "tree": [
        ("box", "wood", (0.43, 0.6, 0.57, 1)), ("ellipse", "main", (0.0, 0.22, 0.58, 0.72)),
        ("ellipse", "main", (0.40, 0.24, 1, 0.74)), ("ellipse", "main", (0.16, 0, 0.84, 0.56)),
    ],
    "house": [
        ("box", "main", (0.1, 0.42, 0.9, 1)), ("polygon", "dark", (0, 0.46, 0.5, 0.04, 1, 0.46)),
        ("box", "shade", (0.70, 0.08, 0.80, 0.34)), ("box", "wood", (0.43, 0.66, 0.60, 1)),
        ("box", "glass", (0.18, 0.55, 0.34, 0.73)), ("box", "glass", (0.68, 0.55, 0.83, 0.73)),
    ],
    "cup": [
        ("ring", "main", (0.08, 0.60, 0.25, 1, 0.75)),
        ("polygon", "main", (0.02, 0.08, 0.76, 0.08, 0.68, 0.92, 0.58, 1, 0.2, 1, 0.10, 0.92)),
        ("ellipse", "shade", (0.02, 0, 0.76, 0.17)), ("ellipse", "dark", (0.08, 0.03, 0.70, 0.15)),
    ],
    "box": [
        ("polygon", "tint", (0.0, 0.22, 0.24, 0.02, 1, 0.02, 0.78, 0.22)), ("box", "main", (0, 0.22, 0.78, 1)),
        ("polygon", "shade", (0.78, 0.22, 1, 0.02, 1, 0.78, 0.78, 1)),
    ],
    "boat": [
        ("line", "wood", (0.035, 0.48, 0.02, 0.48, 0.75)), ("polygon", "white", (0.52, 0.06, 0.52, 0.66, 0.94, 0.66)),
        ("polygon", "cream", (0.44, 0.16, 0.44, 0.66, 0.12, 0.66)),
        ("polygon", "main", (0, 0.72, 1, 0.72, 0.84, 1, 0.18, 1)), ("box", "shade", (0.02, 0.72, 0.98, 0.77)),
    ],
    "flower": [
        ("line", "leaf", (0.06, 0.5, 0.4, 0.48, 1)), ("ellipse", "leaf", (0.5, 0.68, 0.92, 0.82)),
        ("ellipse", "leaf", (0.1, 0.76, 0.5, 0.9)),
        *[
            ("ellipse", "main", (0.5 + 0.30 * c - 0.21, 0.3 + 0.20 * s - 0.145, 0.5 + 0.30 * c + 0.21, 0.3 + 0.20 * s + 0.145))
            for c, s in [(float(np.cos(a)), float(np.sin(a))) for a in np.arange(6) * np.pi / 3]
        ],
        ("ellipse", "gold", (0.34, 0.19, 0.66, 0.41)),
    ],
    "balloon": [
        ("line", "dark", (0.02, 0.5, 0.74, 0.46, 0.84, 0.54, 0.92, 0.5, 1)), ("polygon", "main", (0.5, 0.7, 0.42, 0.78, 0.58, 0.78)),
        ("ellipse", "main", (0, 0, 1, 0.74)),
    ],
    "bird": [
        ("polygon", "shade", (0.0, 0.46, 0.3, 0.52, 0.26, 0.68)), ("ellipse", "main", (0.16, 0.40, 0.76, 0.82)),
        ("ellipse", "main", (0.60, 0.26, 0.88, 0.60)), ("polygon", "gold", (0.86, 0.38, 1, 0.45, 0.86, 0.50)),
        ("polygon", "tint", (0.28, 0.56, 0.58, 0.56, 0.28, 0.02, 0.20, 0.1)), ("ellipse", "dark", (0.74, 0.36, 0.80, 0.44)),
    ],
    "fish": [
        ("polygon", "shade", (0.24, 0.5, 0, 0.12, 0.06, 0.5, 0, 0.88)), ("polygon", "shade", (0.42, 0.24, 0.62, 0.0, 0.72, 0.24)),
        ("ellipse", "main", (0.14, 0.14, 1, 0.86)), ("ellipse", "white", (0.80, 0.32, 0.90, 0.50)),
        ("ellipse", "dark", (0.83, 0.36, 0.89, 0.47)), ("polygon", "tint", (0.44, 0.52, 0.62, 0.46, 0.58, 0.72)),
    ],
    "umbrella": [
        ("line", "wood", (0.04, 0.5, 0.1, 0.5, 0.92, 0.46, 0.98, 0.38, 0.96)), ("pie", "main", (180, 360, 0, 0.06, 1, 1.02)),
        ("polygon", "shade", (0.34, 0.54, 0.5, 0.07, 0.66, 0.54)), ("box", "dark", (0.485, 0, 0.515, 0.1)),
    ],
    "chair": [
        ("box", "shade", (0.06, 0, 0.18, 1)), ("box", "shade", (0.80, 0.52, 0.92, 1)), ("round", "main", (0.06, 0.02, 0.04, 0.28, 0.56)),
        ("round", "main", (0.05, 0.02, 0.50, 0.98, 0.64)), ("box", "shade", (0.30, 0.62, 0.38, 0.94)),
    ],
    "bottle": [
        ("box", "main", (0.34, 0.1, 0.66, 0.4)), ("round", "main", (0.2, 0.04, 0.32, 0.96, 1)), ("box", "wood", (0.32, 0, 0.68, 0.1)),
        ("box", "cream", (0.06, 0.56, 0.94, 0.80)),
    ],
    "apple": [
        ("line", "wood", (0.06, 0.5, 0.22, 0.56, 0.02)), ("ellipse", "leaf", (0.56, 0.02, 0.86, 0.16)),
        ("ellipse", "main", (0, 0.14, 0.62, 0.94)), ("ellipse", "main", (0.38, 0.14, 1, 0.94)), ("ellipse", "main", (0.14, 0.3, 0.86, 1)),
    ],
    "kite": [
        ("line", "dark", (0.02, 0.5, 0.66, 0.42, 0.8, 0.56, 0.9, 0.48, 1)), ("polygon", "main", (0.5, 0, 1, 0.28, 0.5, 0.7, 0, 0.28)),
        ("polygon", "shade", (0.5, 0, 0.5, 0.28, 0, 0.28)), ("polygon", "shade", (0.5, 0.28, 1, 0.28, 0.5, 0.7)),
        ("polygon", "tint", (0.34, 0.80, 0.50, 0.86, 0.36, 0.92)),
    ],
    "mushroom": [
        ("polygon", "cream", (0.36, 0.5, 0.64, 0.5, 0.72, 1, 0.28, 1)), ("pie", "main", (180, 360, 0, 0.02, 1, 1.02)),
        ("ellipse", "shade", (0, 0.46, 1, 0.60)),
    ],
    "lamp": [
        ("box", "metal", (0.45, 0.4, 0.55, 0.95)), ("ellipse", "dark", (0.2, 0.88, 0.8, 1)),
        ("polygon", "main", (0.28, 0, 0.72, 0, 1, 0.5, 0, 0.5)), ("ellipse", "flame", (0.1, 0.46, 0.9, 0.54)),
    ],
    "star": [
        ("polygon", "main", tuple(
            0.5 + r * v
            for i in range(10)
            for r in ((0.52, 0.22)[i % 2],)
            for v in (float(np.sin(i * np.pi / 5)), -float(np.cos(i * np.pi / 5)))
        ))
    ],
    "hat": [
        ("ellipse", "main", (0, 0.68, 1, 1)), ("round", "main", (0.12, 0.2, 0.02, 0.8, 0.86)), ("box", "shade", (0.2, 0.58, 0.8, 0.74)),
    ],
    "book": [
        ("polygon", "main", (0, 0.3, 0.3, 0.08, 1, 0.08, 0.78, 0.3)), ("box", "main", (0, 0.28, 0.78, 0.38)),
        ("box", "cream", (0.04, 0.38, 0.78, 0.9)), ("polygon", "cream", (0.78, 0.34, 0.98, 0.14, 0.98, 0.7, 0.78, 0.92)),
        ("box", "main", (0, 0.3, 0.06, 1)), ("box", "main", (0, 0.88, 0.78, 1)), ("polygon", "shade", (0.78, 0.88, 1, 0.66, 1, 0.78, 0.78, 1)),
    ],
    "tent": [
        ("polygon", "main", (0, 1, 0.42, 0.06, 0.72, 0.06, 1, 0.9, 0.78, 1)), ("polygon", "shade", (0.42, 0.06, 0.72, 0.06, 1, 0.9, 0.78, 1)),
        ("polygon", "dark", (0.28, 1, 0.42, 0.3, 0.56, 1)),
    ],
    "cat": [
        ("line", "main", (0.09, 0.86, 0.94, 0.98, 0.76, 0.90, 0.56)), ("ellipse", "main", (0.22, 0.44, 0.86, 1)),
        ("polygon", "main", (0.10, 0.28, 0.13, 0.0, 0.34, 0.16)), ("polygon", "main", (0.40, 0.16, 0.62, 0.0, 0.64, 0.30)),
        ("ellipse", "main", (0.08, 0.1, 0.66, 0.58)), ("ellipse", "gold", (0.2, 0.28, 0.29, 0.38)), ("ellipse", "gold", (0.45, 0.28, 0.54, 0.38)),
        ("polygon", "cream", (0.33, 0.40, 0.41, 0.40, 0.37, 0.46)), ("ellipse", "tint", (0.26, 0.88, 0.46, 1)), ("ellipse", "tint", (0.5, 0.88, 0.7, 1)),
    ],
    "butterfly": [
        ("ellipse", "main", (0, 0, 0.5, 0.60)), ("ellipse", "main", (0.5, 0, 1, 0.60)), ("ellipse", "tint", (0.1, 0.46, 0.5, 1)),
        ("ellipse", "tint", (0.5, 0.46, 0.9, 1)), ("ellipse", "dark", (0.45, 0.16, 0.55, 0.92)),
        ("line", "dark", (0.02, 0.5, 0.2, 0.38, 0.0)), ("line", "dark", (0.02, 0.5, 0.2, 0.62, 0.0)),
    ],
    "duck": [
        ("polygon", "main", (0.0, 0.42, 0.3, 0.56, 0.2, 0.84)), ("ellipse", "main", (0.06, 0.46, 0.82, 1)), ("ellipse", "main", (0.5, 0.02, 0.88, 0.48)),
        ("box", "main", (0.56, 0.34, 0.76, 0.62)), ("polygon", "flame", (0.84, 0.2, 1, 0.28, 0.84, 0.36)), ("ellipse", "dark", (0.72, 0.14, 0.78, 0.22)),
        ("ellipse", "shade", (0.2, 0.58, 0.58, 0.84)),
    ],
    "rocket": [
        ("polygon", "flame", (0.36, 0.84, 0.64, 0.84, 0.5, 1)), ("polygon", "shade", (0.0, 0.86, 0.28, 0.52, 0.28, 0.80)),
        ("polygon", "shade", (1, 0.86, 0.72, 0.52, 0.72, 0.80)), ("ellipse", "main", (0.2, 0, 0.8, 1.1)), ("box", "dark", (0.3, 0.82, 0.7, 0.87)),
        ("clear", "main", (0, 0.875, 0.34, 1)), ("clear", "main", (0.66, 0.875, 1, 1)), ("polygon", "flame", (0.34, 0.875, 0.66, 0.875, 0.5, 1)),
        ("ellipse", "metal", (0.36, 0.28, 0.64, 0.44)), ("ellipse", "glass", (0.40, 0.305, 0.60, 0.415)),
    ],
    "clock": [
        ("line", "dark", (0.07, 0.26, 0.8, 0.16, 1)), ("line", "dark", (0.07, 0.74, 0.8, 0.84, 1)), ("ellipse", "shade", (0.1, 0, 0.4, 0.26)),
        ("ellipse", "shade", (0.6, 0, 0.9, 0.26)), ("ellipse", "main", (0.04, 0.06, 0.96, 0.94)), ("ellipse", "white", (0.18, 0.19, 0.82, 0.81)),
        ("line", "dark", (0.05, 0.5, 0.28, 0.5, 0.5, 0.68, 0.6)),
    ],
    "guitar": [
        ("box", "wood", (0.42, 0.08, 0.58, 0.5)), ("box", "dark", (0.36, 0, 0.64, 0.1)), ("ellipse", "main", (0.12, 0.42, 0.88, 0.76)),
        ("ellipse", "main", (0, 0.58, 1, 1)), ("ellipse", "dark", (0.36, 0.58, 0.64, 0.72)), ("box", "wood", (0.32, 0.84, 0.68, 0.88)),
    ],
    "cactus": [
        ("line", "main", (0.17, 0.14, 0.28, 0.14, 0.52, 0.5, 0.56)), ("line", "main", (0.17, 0.86, 0.18, 0.86, 0.42, 0.5, 0.46)),
        ("round", "main", (0.14, 0.34, 0, 0.66, 0.86)), ("ellipse", "main", (0.055, 0.2, 0.225, 0.36)), ("ellipse", "main", (0.775, 0.1, 0.945, 0.26)),
        ("polygon", "wood", (0.16, 0.74, 0.84, 0.74, 0.74, 1, 0.26, 1)),
    ],
    "teapot": [
        ("ring", "main", (0.06, 0.0, 0.3, 0.32, 0.78)), ("polygon", "main", (0.72, 0.72, 0.72, 0.5, 0.92, 0.24, 1, 0.28, 0.88, 0.6)),
        ("ellipse", "main", (0.16, 0.2, 0.84, 1)), ("ellipse", "shade", (0.32, 0.15, 0.68, 0.31)), ("ellipse", "gold", (0.45, 0.03, 0.55, 0.18)),
    ],
    "snowman": [
        ("ellipse", "main", (0.04, 0.50, 0.96, 1)), ("ellipse", "main", (0.14, 0.28, 0.86, 0.66)), ("ellipse", "main", (0.24, 0.08, 0.76, 0.38)),
        ("box", "dark", (0.3, 0, 0.7, 0.12)), ("box", "dark", (0.18, 0.11, 0.82, 0.15)), ("polygon", "flame", (0.5, 0.22, 0.86, 0.26, 0.5, 0.28)),
        ("ellipse", "dark", (0.38, 0.17, 0.46, 0.21)), ("ellipse", "dark", (0.56, 0.17, 0.64, 0.21)), ("ellipse", "dark", (0.46, 0.42, 0.54, 0.46)),
        ("ellipse", "dark", (0.46, 0.52, 0.54, 0.56)),
    ],
    "lighthouse": [
        ("polygon", "main", (0.26, 0.24, 0.74, 0.24, 0.9, 1, 0.1, 1)), ("box", "flame", (0.32, 0.11, 0.68, 0.22)), ("box", "dark", (0.16, 0.21, 0.84, 0.26)),
        ("polygon", "dark", (0.22, 0.12, 0.5, 0, 0.78, 0.12)), ("box", "dark", (0.42, 0.84, 0.58, 1)), ("polygon", "white", (0.21, 0.46, 0.79, 0.46, 0.83, 0.64, 0.17, 0.64)),
    ],
    "windmill": [
        ("polygon", "main", (0.34, 0.4, 0.66, 0.4, 0.8, 1, 0.2, 1)), ("pie", "shade", (180, 360, 0.32, 0.26, 0.68, 0.56)), ("box", "dark", (0.43, 0.8, 0.57, 1)),
        ("polygon", "cream", (0.48, 0.36, 0.96, 0.02, 1, 0.14)), ("polygon", "cream", (0.52, 0.36, 0.04, 0.02, 0.0, 0.14)),
        ("polygon", "cream", (0.48, 0.40, 0.98, 0.62, 0.90, 0.72)), ("polygon", "cream", (0.52, 0.40, 0.02, 0.62, 0.10, 0.72)), ("ellipse", "dark", (0.45, 0.34, 0.55, 0.43)),
    ],
    "candle": [
        ("ellipse", "metal", (0, 0.9, 1, 1)), ("box", "main", (0.2, 0.34, 0.8, 0.95)), ("ellipse", "tint", (0.2, 0.31, 0.8, 0.37)),
        ("line", "dark", (0.05, 0.5, 0.24, 0.5, 0.34)), ("ellipse", "flame", (0.34, 0.08, 0.66, 0.30)), ("polygon", "flame", (0.38, 0.16, 0.5, 0, 0.62, 0.16)),
    ],
    "bell": [
        ("ellipse", "dark", (0.4, 0.82, 0.6, 1)), ("ring", "shade", (0.06, 0.38, 0, 0.62, 0.2)),
        ("polygon", "main", (0.36, 0.14, 0.64, 0.14, 0.76, 0.34, 0.8, 0.66, 1, 0.86, 0, 0.86, 0.2, 0.66, 0.24, 0.34)), ("box", "shade", (0.02, 0.80, 0.98, 0.87)),
    ],
    "anchor": [
        ("ring", "main", (0.09, 0.36, 0, 0.64, 0.24)), ("box", "main", (0.43, 0.2, 0.57, 0.92)), ("round", "main", (0.04, 0.22, 0.28, 0.78, 0.38)),
        ("arc", "main", (0.13, 15, 165, 0.04, 0.22, 0.96, 0.98)), ("polygon", "main", (0, 0.52, 0.03, 0.82, 0.26, 0.64)), ("polygon", "main", (1, 0.52, 0.97, 0.82, 0.74, 0.64)),
    ],
    "crab": [
        *[("line", "shade", (0.05, 0.5 + s * 0.2, 0.66, 0.5 + s * (0.34 + d), 0.72, 0.5 + s * (0.36 + d), 1)) for s in (-1, 1) for d in (0.0, 0.07, 0.14)],
        ("line", "main", (0.07, 0.26, 0.62, 0.12, 0.44)), ("line", "main", (0.07, 0.74, 0.62, 0.88, 0.44)), ("pie", "main", (-40, 260, 0.0, 0.08, 0.27, 0.48)),
        ("pie", "main", (-80, 220, 0.73, 0.08, 1, 0.48)), ("ellipse", "main", (0.2, 0.40, 0.8, 0.92)), ("ellipse", "white", (0.36, 0.30, 0.46, 0.46)),
        ("ellipse", "white", (0.54, 0.30, 0.64, 0.46)), ("ellipse", "dark", (0.39, 0.34, 0.44, 0.42)), ("ellipse", "dark", (0.57, 0.34, 0.62, 0.42)),
    ],
    "key": [
        ("box", "main", (0.36, 0.40, 1, 0.60)), ("box", "main", (0.72, 0.55, 0.80, 0.86)), ("box", "main", (0.88, 0.55, 0.97, 0.96)),
        ("ring", "main", (0.17, 0, 0.1, 0.46, 0.9)),
    ],
}  # fmt: skip


def paint_object(group: Group, height: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paint one object of ``group``.

    Parameters
    ----------
    group : Group
    height : float
        Of the object, pixels.

    Returns
    -------
    colour : float32 (h, w, 3), 0..1
    alpha : float32 (h, w), 0..1
        Anti-aliased; the object touches the lower edge.
    """
    scale = _OVERSAMPLING
    h = max(round(height), 6)
    w = max(round(height * KINDS[group.kind].aspect), 6)
    paint = _Painter(w * scale, h * scale)
    inks = _inks(group, generator)
    for primitive, ink, numbers in _SHAPES[group.kind]:
        paint.draw(primitive, inks[ink], numbers, patterned=ink == "main")
    picture = paint.finish(group.pattern, _second_colour(group, generator), generator)
    if generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(picture.reduce(scale), dtype=np.float32) / 255
    alpha = values[..., 3]
    # The transparent surroundings are black; without this division the rim would be dark.
    colour = values[..., :3] / np.maximum(alpha, 1 / 255)[..., None]
    return np.clip(colour * _relief(alpha, generator)[..., None], 0, 1), alpha


class _Painter:
    """Draws primitives in unit coordinates and remembers where the pattern goes."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._colour = Image.new("RGBA", self._size, (0, 0, 0, 0))
        self._patterned = Image.new("L", self._size, 0)
        self._pens = (ImageDraw.Draw(self._colour), ImageDraw.Draw(self._patterned))

    def draw(self, primitive: str, ink: tuple[int, int, int], numbers: tuple[float, ...], *, patterned: bool) -> None:
        colour, mark = self._pens
        self._primitive(colour, primitive, numbers, (0, 0, 0, 0) if primitive == "clear" else (*ink, 255))
        self._primitive(mark, primitive, numbers, 255 if patterned and primitive != "clear" else 0)

    def _primitive(
        self, pen: ImageDraw.ImageDraw, primitive: str, numbers: tuple[float, ...], fill: float | tuple[int, ...]
    ) -> None:
        if primitive == "ellipse":
            pen.ellipse(self._points(numbers), fill=fill)
        elif primitive == "polygon":
            pen.polygon(self._points(numbers), fill=fill)
        elif primitive in ("box", "clear"):
            pen.rectangle(self._points(numbers), fill=fill)
        elif primitive == "round":
            pen.rounded_rectangle(self._points(numbers[1:]), radius=numbers[0] * min(self._size), fill=fill)
        elif primitive == "line":
            pen.line(self._points(numbers[1:]), fill=fill, width=self._width(numbers[0]), joint="curve")
        elif primitive == "ring":
            pen.ellipse(self._points(numbers[1:]), outline=fill, width=self._width(numbers[0]))
        elif primitive == "pie":
            pen.pieslice(self._points(numbers[2:]), numbers[0], numbers[1], fill=fill)
        else:
            pen.arc(self._points(numbers[3:]), numbers[1], numbers[2], fill=fill, width=self._width(numbers[0]))

    def finish(self, pattern: str, second: tuple[int, int, int], generator: np.random.Generator) -> Image.Image:
        if pattern != "plain":
            mask = _pattern(pattern, self._size, generator)
            mask = Image.composite(mask, Image.new("L", self._size, 0), self._patterned)
            self._colour.paste((*second, 255), mask=mask)
        return self._colour

    def _points(self, numbers: tuple[float, ...]) -> list[float]:
        width, height = self._size
        return [value * (height - 1 if i % 2 else width - 1) for i, value in enumerate(numbers)]

    def _width(self, fraction: float) -> int:
        return max(round(fraction * min(self._size)), 2)


def _inks(group: Group, generator: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    main = np.array(COLOURS[group.colour]) + generator.normal(0, 7, 3)

    def ink(values: np.ndarray) -> tuple[int, int, int]:
        r, g, b = np.clip(values, 0, 255).astype(int).tolist()
        return r, g, b

    return {**_INKS, "main": ink(main), "shade": ink(main * 0.68), "tint": ink(main + (255 - main) * 0.3)}


def _second_colour(group: Group, generator: np.random.Generator) -> tuple[int, int, int]:
    """Return the pattern's other colour: light on dark, dark on light, so that the pattern shows."""
    light = sum(COLOURS[group.colour]) > 480
    shade = int(generator.integers(30, 70) if light else generator.integers(215, 250))
    return shade, shade, int(min(shade * 1.03, 255))


def _pattern(name: str, size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Return the mask of the pattern's second colour."""
    width, height = size
    step = max(max(width, height) * generator.uniform(0.12, 0.17), 3.0)
    phase = generator.uniform(0, step, 2)
    x = (np.arange(width, dtype=np.float32)[None, :] + phase[0]) / step
    y = (np.arange(height, dtype=np.float32)[:, None] + phase[1]) / step
    if name == "striped":
        slant = generator.choice((0.0, 0.0, 0.5))
        mask = (((y + slant * x) if generator.random() < 0.5 else (x + slant * y)) % 1.0) < 0.5
    elif name == "dotted":
        mask = ((x % 1.0 - 0.5) ** 2 + (y % 1.0 - 0.5) ** 2) < 0.09
    elif name == "checkered":
        mask = (np.floor(x) + np.floor(y)) % 2 < 1
    elif name == "zigzag":
        mask = ((y + np.abs(x % 1.0 - 0.5)) % 1.0) < 0.45
    else:
        veins = Image.fromarray(generator.normal(size=(9, 9)).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        mask = np.abs(np.asarray(veins)) < 0.22
    return Image.fromarray(np.broadcast_to(mask, (height, width)).astype(np.uint8) * 255)


def _relief(alpha: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the factor that light from above and one side gives a body whose height is the blurred silhouette."""
    h, w = alpha.shape
    bulge = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(max(min(h, w) * 0.14, 1.0)))
    height = np.asarray(bulge, dtype=np.float32) / 255
    slope_y, slope_x = np.gradient(height)
    side = 1.0 if generator.random() < 0.5 else -1.0
    lit = (0.55 * side * slope_x + 0.85 * slope_y) * min(h, w)
    gloss = np.clip(lit - 0.55, 0, 1) * 0.35
    fall = np.linspace(1.08, 0.88, h, dtype=np.float32)[:, None]
    return (np.clip(1 + 0.42 * lit, 0.5, 1.5) + gloss) * fall * _grain(h, w, generator)


def _grain(h: int, w: int, generator: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(generator.normal(1, 0.05, (5, 5)).astype(np.float32))
    return np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))


@functools.cache
def shape_names() -> frozenset[str]:
    """Return the kinds that can be painted."""
    return frozenset(_SHAPES)
