"""The profile's page in a real browser: it is laid out, its pictures are drawn, nothing is missing or cut off."""

import io
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import SMALL, coreclip

_BROWSER = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
]


@pytest.fixture(scope="module")
def page(flow, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "profile.html"
    coreclip("profile", flow["at"] / "data", "--steps", 8, "--cold", "--html", path, *SMALL)
    return path


def browse(folder, *arguments):
    """Run the browser once with a profile of its own."""
    command = [*_BROWSER, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, timeout=120, check=True)


def screenshot(page, folder, width, height=6000, *more):
    picture = folder / "page.png"
    browse(folder, *more, f"--screenshot={picture}", f"--window-size={width},{height}", page.as_uri())
    with Image.open(io.BytesIO(picture.read_bytes())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def area(picture, colour):
    """Return how many pixels have a colour, and the width that they reach over."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    hit = (np.abs(picture - wanted) <= 2).all(axis=2)
    columns = np.flatnonzero(hit.any(axis=0))
    return int(hit.sum()), 0 if not len(columns) else int(columns[-1] - columns[0])


def test_stages_conditions_and_roofline_are_drawn(page, tmp_path):
    picture = screenshot(page, tmp_path, 1200)
    text = page.read_text()
    for stage in ("forward", "backward"):
        colour = {"forward": "#2471a3", "backward": "#1a5276"}[stage]
        pixels, _ = area(picture, colour)
        assert pixels > 500, stage  # a bar, and pieces of the time line
    assert area(picture, "#9aa8bd")[0] > 500  # the conditions' bars
    assert (
        area(picture, "#0b7a6f")[0] + area(picture, "#b7702b")[0] > 100
    )  # operators under the roof, and the loader's parts
    assert text.count("<figure>") == text.count("</figure>") >= 4


def test_pictures_lie_within_the_page_on_a_desk_and_on_a_phone(page, tmp_path):
    # The page tells its own size when it is asked through a copy with a script; the page itself has none.
    script = "<script>document.title = [innerWidth, document.documentElement.scrollWidth].join(' ')</script>"
    asked = tmp_path / "asked.html"
    asked.write_text(page.read_text().replace("</body>", script + "</body>"))
    for width in (1200, 500):
        shown = browse(tmp_path, "--dump-dom", f"--window-size={width},2000", asked.as_uri()).stdout.decode()
        inner, scrolled = map(int, re.search(r"<title>(\d+) (\d+)</title>", shown).groups())
        assert scrolled <= inner, width


def test_dark_mode_is_dark_with_light_text(page, tmp_path):
    light = screenshot(page, tmp_path, 1200, 800)
    dark = screenshot(page, tmp_path, 1200, 800, "--blink-settings=preferredColorScheme=0")
    assert light[5, 5].sum() > 700
    assert dark[5, 5].sum() < 150
    assert 0.002 < (light.sum(axis=2) < 250).mean() < 0.5
    assert 0.002 < (dark.sum(axis=2) > 550).mean() < 0.5
