"""A grammar of English captions for scenes, in the manner of people: partial, varied, sometimes curt.

A caption names the objects and drops adjectives at random; it takes synonyms, turns relations round ("a cup left of
a box" = "a box right of a cup") and may leave the background or the light out. It never says what the scene does not
show. Misspellings, other languages and boiler-plate text are left out.
"""

import numpy as np

from coreclip.pipeline.scene_world import Group, Scene

_NOUNS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"), "car": ("car", "car", "automobile"), "house": ("house", "house", "cottage"),
    "cup": ("cup", "mug"), "box": ("box", "box", "crate"), "boat": ("boat", "sailing boat", "sailboat"),
    "umbrella": ("umbrella", "parasol"), "lamp": ("lamp", "table lamp"), "cat": ("cat", "cat", "kitty"),
    "mushroom": ("mushroom", "toadstool"), "rocket": ("rocket", "spaceship"), "flower": ("flower", "blossom"),
    "kite": ("kite",), "book": ("book", "book", "volume"), "clock": ("clock", "alarm clock"), "tent": ("tent",),
    "bell": ("bell", "church bell"), "star": ("star",), "teapot": ("teapot", "tea pot"),
}  # fmt: skip
_COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "scarlet"), "grey": ("grey", "gray"), "turquoise": ("turquoise", "teal"),
    "purple": ("purple", "violet"), "navy": ("navy", "dark blue"), "lime": ("lime green", "bright green"),
    "maroon": ("maroon", "dark red"), "yellow": ("yellow", "yellow", "golden"), "brown": ("brown", "brown", "chestnut"),
}  # fmt: skip
_PATTERNS: dict[str, tuple[str, ...]] = {
    "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checked"), "zigzag": ("zigzag", "zigzag-patterned"), "marbled": ("marbled",),
}  # fmt: skip
_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("big", "large", "huge"),
    "medium": ("",),
}
_COUNTS: dict[int, tuple[str, ...]] = {
    2: ("two", "two", "a pair of", "a couple of"), 3: ("three", "three", "a few"),
    4: ("four", "four", "several"), 5: ("five", "five", "several"),
}  # fmt: skip
_SETTINGS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "beach": ("on the beach", "at the seaside", "on a sandy beach"),
    "kitchen": ("on a kitchen table", "on a wooden table", "in the kitchen"),
    "street": ("on the street", "on a city street", "in town"),
    "snow": ("in the snow", "on a snowy field", "in deep snow"),
    "forest": ("in the forest", "in the woods", "among the trees of a wood"),
    "living room": ("in a living room", "on the living room floor", "at home"),
    "night street": ("on a street at night", "under city lights", "in a dark city"),
    "lake": ("at a lake", "on the water", "on a calm lake"),
    "desert": ("in the desert", "on a sand dune", "among the dunes"),
    "mountains": ("in the mountains", "before a mountain range", "in the hills"),
    "garden": ("in a garden", "before a flowering hedge", "on a lawn"),
    "brick wall": ("in front of a brick wall", "before a brick wall", "at an old brick wall"),
    "stage": ("on a stage", "before a theatre curtain", "in a theatre"),
    "underwater": ("under water", "on the sea floor", "at the bottom of the sea"),
    "moon": ("on the moon", "in space", "under a black sky full of stars"),
}
_LIGHTS: dict[str, tuple[str, ...]] = {
    "clear": ("in bright light", "on a clear day"), "cloudy": ("on a cloudy day", "under grey clouds"),
    "sunset": ("at sunset", "in the evening light", "at dusk"), "foggy": ("in the fog", "on a misty morning"),
    "rainy": ("in the rain", "on a rainy day"), "night": ("at night", "in the dark", "by moonlight"),
    "snowing": ("while it snows", "in a snow shower"), "lamplit": ("by lamplight", "in warm lamplight"),
    "dim": ("in dim light", "in a dim corner"),
}  # fmt: skip
# (with the first group as the subject, with the second as the subject); {v} is "is" or "are"
_RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left of": (("to the left of", "left of", "on the left side of"), ("to the right of", "right of")),
    "right of": (("to the right of", "right of", "on the right side of"), ("to the left of", "left of")),
    "in front of": (("in front of", "before", "partly hiding"), ("behind", "half hidden by")),
    "behind": (("behind", "at the back of", "half hidden by"), ("in front of", "partly covering")),
    "above": (("above", "over", "high above", "hovering over"), ("below", "underneath", "beneath")),
    "below": (("below", "under", "beneath"), ("above", "over", "floating above")),
    "on": (("on top of", "on", "standing on"), ("underneath", "carrying", "supporting")),
}
_SIDE = {"left of": ("on the left", "on the right"), "right of": ("on the right", "on the left")}


def captions(scene: Scene, generator: np.random.Generator, n: int) -> list[str]:
    """Return ``n`` captions of ``scene``, no two of them equal."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[caption(scene, generator)] = None
    return list(found)


def caption(scene: Scene, generator: np.random.Generator) -> str:
    """Return one caption of ``scene``."""
    return _Writer(scene, generator).write()


def plural(noun: str) -> str:
    """Return the plural of one of the grammar's nouns."""
    irregular = {"fish": "fish", "snowman": "snowmen", "cactus": "cacti"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def article(phrase: str) -> str:
    """Return ``phrase`` with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


class _Writer:
    """One caption under way: the scene and the lots that are drawn for it."""

    def __init__(self, scene: Scene, generator: np.random.Generator) -> None:
        self._scene, self._generator = scene, generator

    def write(self) -> str:
        template = self._generator.random()
        if template < 0.07:
            return self._keywords()
        body = self._pair() if len(self._scene.groups) == 2 else self._single()
        place, light = self._place(), self._light()
        if place and self._chance(0.2):
            text = ", ".join(filter(None, (place, body))) + (f" {light}" if light else "")
        else:
            text = " ".join(filter(None, (body, place, light)))
        return self._finish(text)

    def _single(self) -> str:
        (group,) = self._scene.groups
        phrase = self._phrase(group)
        return self._pick((
            phrase, phrase, f"a photo of {phrase}", f"a picture of {phrase}", f"there {_is(group)} {phrase}",
            f"{phrase} seen", f"we see {phrase}", f"{phrase} {self._verb(group)}",
        ))  # fmt: skip

    def _pair(self) -> str:
        first, second = self._scene.groups
        relation = self._scene.relation or ""
        forward, backward = _RELATIONS[relation]
        a, b = self._phrase(first), self._phrase(second)
        options = [
            f"{a} {self._pick(forward)} {b}",
            f"{a} {self._pick(forward)} {b}",
            f"{b} {self._pick(backward)} {a}",
            f"there {_is(first)} {a} {self._pick(forward)} {b}",
            f"{a} {_is(first)} {self._pick(forward)} {b}",
            f"a photo of {a} {self._pick(forward)} {b}",
            f"{a} and {b}",
            f"{b} with {a}",
        ]
        if relation in _SIDE:
            left, right = _SIDE[relation]
            options += [f"{a} {left} and {b} {right}", f"{left}, {a}; {right}, {b}"]
        return self._pick(tuple(options))

    def _phrase(self, group: Group) -> str:
        words = []
        if self._chance(0.45) and group.count == 1:
            words.append(self._pick(_SIZES[group.size]))
        if self._chance(0.85):
            words.append(self._pick(_COLOURS.get(group.colour, (group.colour,))))
        if group.pattern != "plain" and self._chance(0.8):
            words.append(self._pick(_PATTERNS[group.pattern]))
        noun = self._pick(_NOUNS.get(group.kind, (group.kind,)))
        if group.count == 1:
            return article(" ".join(filter(None, (*words, noun))))
        return " ".join(filter(None, (self._pick(_COUNTS[group.count]), *words, plural(noun))))

    def _verb(self, group: Group) -> str:
        return "all alone" if group.count == 1 else self._pick(("together", "side by side", "close together"))

    def _place(self) -> str:
        return self._pick(_SETTINGS[self._scene.setting]) if self._chance(0.8) else ""

    def _light(self) -> str:
        chance = 0.06 if self._scene.light == "clear" else 0.65
        dark = self._scene.setting in ("night street", "underwater", "moon", "stage")
        return self._pick(_LIGHTS[self._scene.light]) if not (dark and chance < 0.5) and self._chance(chance) else ""

    def _keywords(self) -> str:
        words = []
        for group in self._scene.groups:
            noun = self._pick(_NOUNS.get(group.kind, (group.kind,)))
            words.append(f"{group.colour} {noun if group.count == 1 else plural(noun)}")
        return ", ".join([*words, self._scene.setting])

    def _finish(self, text: str) -> str:
        if self._chance(0.5):
            text = text[0].upper() + text[1:]
        return text + (self._pick((".", " .")) if self._chance(0.4) else "")

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self._generator.integers(len(options)))]

    def _chance(self, probability: float) -> bool:
        return bool(self._generator.random() < probability)


def _is(group: Group) -> str:
    return "is" if group.count == 1 else "are"
