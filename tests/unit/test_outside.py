"""Re-ranking and classification of files, by a run that knows its pairs by heart."""

import math

import numpy as np
import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.training import ClipModel, classify, rerank, train
from tests.helpers import BY_HEART, make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A run, and a folder with the six images that it was trained on, called by their numbers."""
    at = tmp_path_factory.mktemp("known")
    data = make_dataset(at / "set", 6, captions_per_pair=(1,))
    train(data, at / "run", config=BY_HEART, epochs=100)
    (at / "images").mkdir()
    for i in range(6):
        (at / "images" / f"{i}.jpg").write_bytes(data.image_bytes(i))
    return data, at / "run", at / "images"


def test_candidates_come_in_the_order_of_their_cosines(known):
    data, run, images = known
    result = rerank(run, data.captions(4)[0], [images])
    assert result["results"][0]["path"] == str(images / "4.jpg")
    assert [hit["rank"] for hit in result["results"]] == list(range(1, 7))
    clip = ClipModel.load(run)
    files = [hit["path"] for hit in result["results"]]
    cosines = clip.similarity(files, data.captions(4))[:, 0].numpy()
    np.testing.assert_allclose([hit["score"] for hit in result["results"]], cosines, atol=1e-6)
    assert sorted(cosines.tolist(), reverse=True) == cosines.tolist()
    assert result["failed"] == []
    assert len(rerank(run, "a dog", [images], top=2)["results"]) == 2


def test_copies_come_in_the_order_in_which_they_were_given(known, tmp_path):
    _, run, images = known
    copies = [tmp_path / f"{name}.jpg" for name in "hgfedcba"]
    for path in copies:
        path.write_bytes((images / "3.jpg").read_bytes())
    found = rerank(run, "a dog", copies)["results"]
    assert [hit["path"] for hit in found] == [str(path) for path in copies]


def test_another_systems_order_stands_beside_ours(known, tmp_path):
    data, run, images = known
    table = tmp_path / "found.csv"
    table.write_text("path,score\n" + "".join(f"{images / f'{i}.jpg'},{10 - i}\n" for i in (0, 4, 2)))
    result = rerank(run, data.captions(4)[0], [images / "5.jpg"], candidates=table)
    by_path = {hit["path"]: hit for hit in result["results"]}
    assert len(by_path) == 4
    assert result["results"][0]["path"] == str(images / "4.jpg")
    assert (by_path[str(images / "4.jpg")]["their_rank"], by_path[str(images / "4.jpg")]["their_score"]) == (3, 6.0)
    assert by_path[str(images / "5.jpg")]["their_rank"] is None


def test_bad_files_are_left_out_with_the_reason_unless_all_are(known, tmp_path):
    _, run, images = known
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    files = [tmp_path / "bad.jpg", images / "1.jpg", tmp_path / "missing.png"]
    for result in (rerank(run, "a dog", files), classify(run, files, ["dog", "cat"])):
        assert [one["path"] for one in result["results"]] == [str(images / "1.jpg")]
        assert [one["path"] for one in result["failed"]] == [str(files[0]), str(files[2])]
        assert "not an image of a known kind" in result["failed"][0]["reason"]
        assert result["failed"][1]["reason"] == "No such file or directory"
    with pytest.raises(CoreclipError, match=r"none of the 2 images can be read; the first, .*bad.jpg: not an image"):
        rerank(run, "a dog", files[::2])


def test_queries_and_numbers_that_say_nothing_are_refused(known):
    _, run, images = known
    with pytest.raises(CoreclipError, match="the query is empty"):
        rerank(run, " ", [images])
    with pytest.raises(CoreclipError, match="no image is named"):
        rerank(run, "a dog")
    for call in (lambda: rerank(run, "a dog", [images], top=0), lambda: classify(run, [images], ["a", "b"], top=0)):
        with pytest.raises(CoreclipError, match="top = 0 is not allowed"):
            call()
    for names in (["dog"], ["dog", " "], ["dog", "dog "]):
        with pytest.raises(CoreclipError, match="are not allowed: two or more different names"):
            classify(run, [images], names)


def test_images_that_the_run_knows_are_classified_by_their_captions(known):
    data, run, images = known
    names = [data.captions(i)[0] for i in range(6)]
    result = classify(run, [images], names, templates=["{}"], top=6)
    assert result["classes"] == names
    clip = ClipModel.load(run)
    cosines = clip.similarity([images / f"{i}.jpg" for i in range(6)], names)
    for i, one in enumerate(result["results"]):
        assert one["path"] == str(images / f"{i}.jpg")
        assert one["predictions"][0]["class"] == names[int(cosines[i].argmax())]
        assert sum(found["probability"] for found in one["predictions"]) == pytest.approx(1)
    assert sum(one["predictions"][0]["class"] == names[i] for i, one in enumerate(result["results"])) >= 4
    logits = math.exp(clip.logit_scale) * cosines[2]
    expected = torch.softmax(logits.double(), 0).sort(descending=True).values
    found = [one["probability"] for one in result["results"][2]["predictions"]]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3)
    assert len(classify(run, [images], names)["results"][0]["predictions"]) == 5
