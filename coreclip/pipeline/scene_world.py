"""The world that the demonstration's pictures show: what exists, how often, and one scene drawn by lot.

Frequencies follow Zipf's law, as those of things and words on the web do (Piantadosi 2014): the first of each table is
common, the last is seen a few times in thousands of scenes. People, motion and text in pictures are left out.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Of Zipf's law. The last of the 38 kinds of objects comes up in about one scene of 180.
_EXPONENT = 1.1
_KINDS_EXPONENT = 1.5


class Kind(NamedTuple):
    """What the layout knows about a kind of object."""

    floats: bool = False  # hangs in the air, so that it may be above something
    support: float | None = None  # where its flat top is, as a fraction of its height; None where nothing can stand
    aspect: float = 1.0  # width over height


class Setting(NamedTuple):
    """What the layout knows about a background."""

    horizon: float  # where the ground begins, as a fraction of the picture's height
    lights: tuple[str, ...]  # the likeliest first


_OUTDOORS = ("clear", "cloudy", "sunset", "foggy", "rainy", "night", "snowing")
_INDOORS = ("clear", "lamplit", "dim")

KINDS: dict[str, Kind] = {
    "ball": Kind(), "car": Kind(support=0.08, aspect=1.7), "tree": Kind(aspect=0.8), "house": Kind(), "cup": Kind(),
    "box": Kind(support=0.12), "boat": Kind(aspect=1.15), "flower": Kind(aspect=0.7), "balloon": Kind(floats=True, aspect=0.7),
    "bird": Kind(floats=True, aspect=1.4), "fish": Kind(floats=True, aspect=1.6), "umbrella": Kind(aspect=1.1),
    "chair": Kind(aspect=0.7), "bottle": Kind(aspect=0.42), "apple": Kind(), "kite": Kind(floats=True, aspect=0.7),
    "mushroom": Kind(), "lamp": Kind(aspect=0.65), "star": Kind(floats=True), "hat": Kind(aspect=1.5),
    "book": Kind(support=0.14, aspect=1.3), "tent": Kind(aspect=1.35), "cat": Kind(aspect=0.9),
    "butterfly": Kind(floats=True, aspect=1.2), "duck": Kind(aspect=1.15), "rocket": Kind(floats=True, aspect=0.55),
    "clock": Kind(), "guitar": Kind(aspect=0.5), "cactus": Kind(aspect=0.75), "teapot": Kind(aspect=1.35),
    "snowman": Kind(aspect=0.65), "lighthouse": Kind(aspect=0.5), "windmill": Kind(aspect=0.85), "candle": Kind(aspect=0.35),
    "bell": Kind(), "anchor": Kind(aspect=0.85), "crab": Kind(aspect=1.45), "key": Kind(aspect=1.8),
}  # fmt: skip

SETTINGS: dict[str, Setting] = {
    "meadow": Setting(0.50, _OUTDOORS),
    "beach": Setting(0.56, _OUTDOORS),
    "kitchen": Setting(0.50, _INDOORS),
    "street": Setting(0.60, _OUTDOORS),
    "snow": Setting(0.48, ("clear", "snowing", "cloudy", "sunset", "foggy", "night")),
    "forest": Setting(0.55, ("clear", "foggy", "rainy", "night", "sunset")),
    "living room": Setting(0.62, _INDOORS),
    "night street": Setting(0.58, ("clear", "rainy", "foggy", "snowing")),
    "lake": Setting(0.45, _OUTDOORS),
    "desert": Setting(0.52, ("clear", "sunset", "night", "cloudy")),
    "mountains": Setting(0.60, _OUTDOORS),
    "garden": Setting(0.55, _OUTDOORS),
    "brick wall": Setting(0.70, _OUTDOORS),
    "stage": Setting(0.66, ("clear", "dim")),
    "underwater": Setting(0.74, ("clear",)),
    "moon": Setting(0.58, ("clear",)),
}

# Linear light is not needed: the values are what a camera would store.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (200, 38, 40), "blue": (42, 82, 190), "green": (44, 140, 62), "white": (232, 230, 224), "yellow": (240, 200, 40),
    "black": (38, 38, 42), "orange": (236, 124, 30), "brown": (122, 78, 44), "pink": (240, 140, 172), "purple": (122, 58, 158),
    "grey": (136, 138, 142), "turquoise": (42, 176, 170), "navy": (28, 38, 92), "lime": (160, 214, 48), "maroon": (112, 24, 44),
}  # fmt: skip

PATTERNS = ("plain", "striped", "dotted", "checkered", "zigzag", "marbled")
_PATTERN_PROBABILITY = np.array([0.60, 0.16, 0.11, 0.07, 0.04, 0.02])
SIZES: dict[str, float] = {"small": 0.20, "medium": 0.30, "large": 0.42}  # height as a fraction of the picture's
_SIZE_PROBABILITY = np.array([0.27, 0.46, 0.27])
_COUNT_PROBABILITY = np.array([0.60, 0.18, 0.11, 0.07, 0.04])
_LIGHT_FIRST = 0.55
_ONE_GROUP = 0.3

BESIDE = ("left of", "right of")
DEPTH = ("in front of", "behind")
HEIGHT = ("above", "below")


@dataclass(frozen=True)
class Group:
    """One to five like objects."""

    kind: str
    colour: str
    pattern: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    """All that a picture shows and a caption may speak of; ``relation`` is of the first group to the second."""

    setting: str
    light: str
    groups: tuple[Group, ...]
    relation: str | None

    def concepts(self) -> list[str]:
        """Return the names of what is in the scene, each once, the objects first."""
        names = [name for g in self.groups for name in (g.kind, g.colour, g.pattern) if name != "plain"]
        names += [self.setting, *([self.light] if self.light != "clear" else [])]
        names += [self.relation] if self.relation else []
        return list(dict.fromkeys(names))

    def rarity(self) -> float:
        """Return the surprisal of the rarest concept, -log2 of how often a group or a scene has it, in bits."""
        return -float(np.log2(min(_FREQUENCY[name] for name in self.concepts() if name in _FREQUENCY)))


def draw_scene(generator: np.random.Generator) -> Scene:
    """Return a scene of the world, one or two groups of objects before a background."""
    setting = _draw(generator, list(SETTINGS), _zipf(len(SETTINGS)))
    lights = SETTINGS[setting].lights
    light = lights[0]
    if len(lights) > 1 and generator.random() > _LIGHT_FIRST:
        light = _draw(generator, list(lights[1:]), _zipf(len(lights) - 1))
    first = _draw_group(generator)
    if generator.random() < _ONE_GROUP:
        return Scene(setting, light, (first,), None)
    second = _draw_group(generator)
    while second.kind == first.kind:  # "a cup left of a cup" says little
        second = _draw_group(generator)
    relation = _draw_relation(generator, first, second)
    if relation in DEPTH:
        first, second = (_at_most(group, 2) for group in (first, second))
    elif relation == "on":
        first, second = _at_most(first, 2), _at_most(second, 1)
    return Scene(setting, light, (first, second), relation)


def _draw_relation(generator: np.random.Generator, first: Group, second: Group) -> str:
    relations = [*BESIDE, *BESIDE, *DEPTH]
    if KINDS[first.kind].floats:
        relations += ["above"] * 4
    elif KINDS[second.kind].support is not None:
        relations += ["on"] * 5
    if KINDS[second.kind].floats:
        relations += ["below"] * 4
    return relations[int(generator.integers(len(relations)))]


def _draw_group(generator: np.random.Generator) -> Group:
    count = 1 + int(generator.choice(5, p=_COUNT_PROBABILITY))
    size = _draw(generator, list(SIZES), _SIZE_PROBABILITY)
    return Group(
        kind=_draw(generator, list(KINDS), _zipf(len(KINDS), _KINDS_EXPONENT)),
        colour=_draw(generator, list(COLOURS), _zipf(len(COLOURS))),
        pattern=_draw(generator, list(PATTERNS), _PATTERN_PROBABILITY),
        size="medium" if size == "large" and count > 2 else size,
        count=count,
    )


def _at_most(group: Group, count: int) -> Group:
    return Group(group.kind, group.colour, group.pattern, group.size, min(group.count, count))


def _zipf(n: int, exponent: float = _EXPONENT) -> np.ndarray:
    weights = np.arange(2, n + 2, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _draw(generator: np.random.Generator, names: list[str], probability: np.ndarray) -> str:
    return names[int(generator.choice(len(names), p=probability))]


_FREQUENCY: dict[str, float] = {
    name: float(p)
    for names, probability in (
        (list(KINDS), _zipf(len(KINDS), _KINDS_EXPONENT)),
        (list(SETTINGS), _zipf(len(SETTINGS))),
        (list(COLOURS), _zipf(len(COLOURS))),
        (list(PATTERNS), _PATTERN_PROBABILITY),
    )
    for name, p in zip(names, probability, strict=True)
}
