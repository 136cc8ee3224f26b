"""DataComp's basic filter at its borders, and the built-in language heuristic on sentences whose language is plain."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import basic_rules, datacomp_basic
from coreclip.selection.english import language_test, looks_english

ENGLISH = [
    "a dog on a beach",
    "Two children are playing football in the park",
    "Las Vegas Strip at night",
    "Nike Air Max 90",
    "Vintage Leather Jacket Size M",
    "Leonardo da Vinci - Mona Lisa",
    "1967 Chevrolet Camaro SS convertible",
    "Los Angeles Lakers jersey",
    "Kitchen Island With Sink",
    "Café latte art",
    "Wedding Invitation Template Floral",
    "Stainless Steel Water Bottle",
    "Rio de Janeiro, Brazil",
    "New York Yankees logo",
]

OTHERS = [
    "ein Hund am Strand mit einem Ball",
    "Haus mit Garten",
    "un chien sur la plage",
    "Chaise de jardin en bois pour enfants",
    "un perro en la playa",
    "um cachorro na praia",
    "Camisa de futebol do Brasil para crianças",
    "un cane sulla spiaggia",
    "Appartamento in vendita a Roma con terrazzo",
    "een hond op het strand",
    "en hund på stranden och en boll",
    "pies na plaży w Sopocie",
    "kumsalda bir köpek ve çocuk",
    "seekor anjing di pantai dengan anak",
    "Geschäftsführer Müller übergibt Schlüssel",
    "собака на пляже",
    "海滩上的狗",
    "ビーチの犬",
    "كلب على الشاطئ",
]


def make_metadata(**changes):
    metadata = {
        "caption": np.array(["a dog on a beach"] * 4, object),
        "width": np.array([640, 640, 640, 640]),
        "height": np.array([480, 480, 480, 480]),
    }
    return metadata | changes


@pytest.mark.parametrize("text", ENGLISH)
def test_english_stays(text):
    assert looks_english(text)


@pytest.mark.parametrize("text", [*OTHERS, "", "12345", "x", "🙂🙂🙂", "!?"])
def test_other_languages_and_no_language_go(text):
    assert not looks_english(text)


def test_upper_case_and_line_ends_change_nothing():
    for text in ENGLISH + OTHERS:
        assert looks_english(text.upper()) == looks_english(text)
        assert looks_english(text.replace(" ", "\n")) == looks_english(text)


@pytest.mark.parametrize(
    ("caption", "passes"),
    [
        ("a big dog", True),
        ("big dogs", False),  # two words
        ("a b cd", True),  # six characters
        ("a b c", False),  # five
        ("the   dog  ", False),  # blanks are no words
        ("", False),
        (None, False),
        (float("nan"), False),
    ],
)
def test_captions_at_the_border(caption, passes):
    rules = basic_rules([caption], np.array([300]), np.array([300]), language="any")
    assert all(rule.all() for rule in rules.values()) == passes or caption in (None, "")
    assert (rules["words"] & rules["characters"]).item() == passes


@pytest.mark.parametrize(
    ("width", "height", "passes"),
    [
        (200, 200, True),
        (199, 200, False),
        (200, 199, False),
        (200, 600, True),
        (600, 200, True),
        (601, 200, False),
        (200, 601, False),
        (0, 0, False),
        (np.nan, 300, False),
        (300, np.nan, False),
        (300, None, False),
    ],
)
def test_sizes_at_the_border(width, height, passes):
    rules = basic_rules(["a dog on a beach"], np.array([width], object), np.array([height], object))
    assert (rules["side"] & rules["aspect"]).item() == passes


def test_what_passes_is_kept_in_the_order_of_the_index():
    metadata = make_metadata(width=np.array([640, 10, 640, 640]))
    subset = datacomp_basic(metadata)
    assert subset.indices.tolist() == [0, 2, 3]
    assert datacomp_basic(metadata, 2).indices.tolist() == [0, 2]
    assert subset.parameters["failed"] == {"english": 0, "words": 0, "characters": 0, "side": 1, "aspect": 1}
    assert subset.parameters["language_model"] == "built-in heuristic"


def test_the_language_can_be_left_out():
    metadata = make_metadata(caption=np.array(["ein Hund am Strand mit einem Ball"] * 4, object))
    with pytest.raises(CoreclipError, match=r"none of the 4 pairs passes \(4 fail english\)"):
        datacomp_basic(metadata)
    assert datacomp_basic(metadata, language="any").k == 4
    assert datacomp_basic(metadata, language="any").parameters["language_model"] is None


def test_a_fasttext_model_decides_where_one_is_given(monkeypatch, tmp_path):
    """A stand-in for the package, which gives what fastText gives for a list: labels and probabilities of each line."""
    asked = []

    class Model:
        def predict(self, lines, k):
            assert isinstance(lines, list)
            assert not any("\n" in line for line in lines), "fastText refuses line ends"
            asked.extend(lines)
            return [[] if not line else ["__label__en" if "dog" in line else "__label__de"] for line in lines], []

    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(load_model=lambda path: Model()))
    (tmp_path / "lid.bin").write_bytes(b"x")
    captions = np.array(["a dog\non a beach", "the cat is here", "", "ein dog am Strand"], object)
    subset = datacomp_basic(make_metadata(caption=captions), language_model=str(tmp_path / "lid.bin"))
    assert subset.indices.tolist() == [0, 3]
    assert asked == ["a dog on a beach", "the cat is here", "", "ein dog am Strand"]
    assert subset.parameters["language_model"] == str(tmp_path / "lid.bin")
    with pytest.raises(CoreclipError, match="no language model at"):
        language_test("english", str(tmp_path / "none.bin"))

    def damaged(path):
        raise ValueError("has wrong file format!")

    monkeypatch.setitem(sys.modules, "fasttext", SimpleNamespace(load_model=damaged))
    with pytest.raises(CoreclipError, match="is no fastText model"):
        language_test("english", str(tmp_path / "lid.bin"))


def test_without_the_package_a_model_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(CoreclipError, match="needs the package fasttext, which is not installed"):
        datacomp_basic(make_metadata(), language_model="lid.bin")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 5}, "k = 5 of 4 pairs"),
        ({"language": "german"}, "unknown language 'german'; known: english, any"),
        ({"language": "any", "language_model": "lid.bin"}, "language='any' asks no model"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        datacomp_basic(make_metadata(), **arguments)


def test_a_missing_column_is_refused():
    metadata = make_metadata()
    del metadata["width"]
    with pytest.raises(CoreclipError, match="needs the metadata 'width', and there is caption, height"):
        datacomp_basic(metadata)
