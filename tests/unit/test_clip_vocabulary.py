"""CLIP's vocabulary: the same tokenizer from each form, found where other packages put it, and what is refused."""

import json

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert, extract, verify
from coreclip.pipeline.clip_vocabulary import VARIABLE, cached_repository, find_clip_tokenizer, read_clip_tokenizer
from coreclip.pipeline.tokenizer import Tokenizer, open_tokenizer
from tests.clip_files import (
    END,
    START,
    learn_merges,
    vocabulary_of,
    whole_merge_list,
    write_hf_vocabulary,
    write_merge_list,
)
from tests.helpers import make_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_hf_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_merge_list(tmp_path_factory.mktemp("whole") / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine on which no package and no cache has a vocabulary."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return tmp_path / "hub"


def test_all_forms_give_one_tokenizer(folder, tmp_path):
    one = read_clip_tokenizer(folder)
    one.save(tmp_path / "tokenizer.json")
    listed = write_merge_list(tmp_path / "list.txt.gz")
    for path in (listed, tmp_path / "tokenizer.json", tmp_path):
        assert read_clip_tokenizer(path).sha256 == one.sha256
    assert Tokenizer.load(tmp_path / "tokenizer.json").sha256 == one.sha256


def test_a_caption_is_start_pieces_end_and_zeros(folder):
    tokenizer, vocabulary = read_clip_tokenizer(folder), vocabulary_of(learn_merges(80))
    n = len(vocabulary)
    assert (tokenizer.is_clip, tokenizer.start, tokenizer.end, tokenizer.vocab_size) == (True, n - 2, n - 1, n)
    row = tokenizer.encode(["A boat!"], 8)[0].tolist()
    pieces = {number: token for token, number in vocabulary.items()}
    assert "".join(pieces[i] for i in row[: row.index(n - 1) + 1]) == f"{START}a</w>boat</w>!</w>{END}"
    assert row[row.index(n - 1) + 1 :] == [0] * (7 - row.index(n - 1))


def test_a_long_caption_is_cut_and_ends_with_the_end_token(folder):
    tokenizer = read_clip_tokenizer(folder)
    row = tokenizer.encode(["boat " * 40], 8)[0]
    assert (row[0], row[-1]) == (tokenizer.start, tokenizer.end)
    assert (row[1:-1] == row[1]).all()


def test_escapes_of_the_web_are_undone_twice_as_in_clips_own_code(folder):
    rows = read_clip_tokenizer(folder).encode(["a &amp;lt; b &quot;", 'a < b "'], 16)
    assert np.array_equal(rows[0], rows[1])


def test_the_end_token_within_a_caption_is_that_token(folder):
    tokenizer = read_clip_tokenizer(folder)
    assert tokenizer.encode([f"a{END}"], 8)[0].tolist()[2:4] == [tokenizer.end, tokenizer.end]


def test_a_tokenizer_that_is_trained_here_is_not_clips():
    tokenizer = Tokenizer.train(["a dog"] * 3, 300)
    assert (tokenizer.is_clip, tokenizer.start, tokenizer.end) == (False, 1, 2)


# ------------------------------------------------------------------------------------------------------------- where it is looked for


def test_the_variable_comes_first(nowhere, monkeypatch, folder):
    monkeypatch.setenv(VARIABLE, str(folder))
    assert find_clip_tokenizer().sha256 == read_clip_tokenizer(folder).sha256
    monkeypatch.setenv(VARIABLE, str(folder / "none.gz"))
    with pytest.raises(CoreclipError, match=r"none.gz can't be read: No such file"):
        find_clip_tokenizer()


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_an_installed_package_is_looked_at_without_running_it(package, monkeypatch, tmp_path, whole):
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('was run')")
    (tmp_path / package / whole.name).write_bytes(whole.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_clip_tokenizer().vocab_size == 49_408


def test_a_clip_in_the_cache_of_hugging_face_is_looked_at(nowhere, whole):
    snapshot = nowhere / "models--openai--clip-vit-base-patch32" / "snapshots" / "0123"
    write_hf_vocabulary(nowhere / "models--a--small-clip" / "snapshots" / "1")  # not CLIP's own: passed over
    write_hf_vocabulary(nowhere / "models--a--bert" / "snapshots" / "1")
    snapshot.mkdir(parents=True)
    read_clip_tokenizer(whole).save(snapshot / "tokenizer.json")
    assert find_clip_tokenizer().sha256 == read_clip_tokenizer(whole).sha256
    assert cached_repository("openai/clip-vit-base-patch32") == snapshot
    assert cached_repository("openai/other") is None
    (snapshot.parent / "9999").mkdir()
    assert cached_repository("openai/clip-vit-base-patch32").name == "9999"
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    assert cached_repository("openai/clip-vit-base-patch32") == snapshot


def test_the_error_says_where_it_was_looked_for(nowhere):
    with pytest.raises(
        CoreclipError, match=rf"{VARIABLE} \(not set\), the packages open_clip and clip, and {nowhere}; pip install"
    ):
        find_clip_tokenizer()


# -------------------------------------------------------------------------------------------------------------------- what is refused


def changed(folder, tmp_path, **parts):
    read_clip_tokenizer(folder).save(tmp_path / "tokenizer.json")
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored | parts))
    return tmp_path / "tokenizer.json"


def test_other_rules_than_clips_are_refused(folder, tmp_path):
    with pytest.raises(CoreclipError, match=r"has other rules than CLIP's: it reads \"A Photo"):
        read_clip_tokenizer(changed(folder, tmp_path, normalizer=None))


def test_the_rules_of_hugging_faces_own_writers_are_clips(folder, tmp_path):
    spaces = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]}
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    path = changed(
        folder, tmp_path, normalizer=normalizer, pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}
    )
    assert read_clip_tokenizer(path).sha256 == read_clip_tokenizer(folder).sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not a byte-pair tokenizer.json"),
        (b"[1]", "not a byte-pair tokenizer.json"),
        (b'{"model": {"vocab": {"a": 0}, "merges": []}}', r"lacks '<\|startoftext\|>' \(and 512 more"),
        (b"nonsense", "is damaged"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CoreclipError, match=message):
        read_clip_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "can't be read"),
        (b"\x1f\x8b\x08\x00broken", "damaged|can't be read"),
    ],
)
def test_a_damaged_list_is_refused(content, message, tmp_path):
    (tmp_path / "list.gz").write_bytes(content)
    with pytest.raises(CoreclipError, match=message):
        read_clip_tokenizer(tmp_path / "list.gz")


def test_a_list_of_other_things_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("title\na b\none two three\n")
    with pytest.raises(CoreclipError, match=r"no list of merges \(line 3\): each line has two pieces"):
        read_clip_tokenizer(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("title\nzz yy\n")
    with pytest.raises(CoreclipError, match="does not fit its merges"):
        read_clip_tokenizer(tmp_path / "list.txt")


def test_ids_with_gaps_and_other_tables_are_refused(folder, tmp_path):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    for content, message in (
        (vocabulary | {START: 99_999}, "whose ids are not 0, 1, 2"),
        ({"a": "b"}, "no table of tokens and ids"),
    ):
        (tmp_path / "vocab.json").write_text(json.dumps(content))
        with pytest.raises(CoreclipError, match=message):
            read_clip_tokenizer(tmp_path)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(CoreclipError, match="no CLIP vocabulary in"):
        read_clip_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------- data sets


def test_a_data_set_is_converted_with_it(folder, tmp_path):
    source = make_dataset(tmp_path / "source", 6)
    convert([source.path], tmp_path / "set", tokenizer=f"clip:{folder}", workers=1)
    data = Dataset(tmp_path / "set")
    tokenizer = read_clip_tokenizer(folder)
    assert data.tokenizer_sha256 == tokenizer.sha256
    assert data.context == 77  # CLIP's own, unless another is asked for
    assert verify(tmp_path / "set").ok
    [pair] = extract(tmp_path / "set", [3])
    assert pair["decoded_tokens"] == data.captions(3)
    same = convert([source.path], tmp_path / "set", tokenizer=f"clip:{folder}", workers=1)
    assert same.already_done


def test_clip_alone_names_the_one_that_is_found(nowhere, monkeypatch, folder):
    monkeypatch.setenv(VARIABLE, str(folder))
    assert open_tokenizer("clip").sha256 == open_tokenizer(f"clip:{folder}").sha256
