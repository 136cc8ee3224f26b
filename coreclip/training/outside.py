"""A trained model on image files that are in no data set: put in order by a text, classified by names that were just typed.

Files that can't be read are listed with the reason and left out. Re-ranking is how CLIP is used behind a faster search: another system
names the candidates, CLIP puts them in order. Classification is that of Radford et al. 2021, with the run's own temperature.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.image_files import find_images, read_candidates, see_images, shown_path
from coreclip.progress import Progress
from coreclip.training.clip_model import ClipModel
from coreclip.training.prompts import TEMPLATES, check_templates, class_features
from coreclip.training.ranking import on_grid
from coreclip.training.retrieval import check_query, check_top

Paths = Sequence[str | os.PathLike[str]]


def rerank(
    run: str | Path,
    query: str,
    images: Paths = (),
    *,
    candidates: str | Path | None = None,
    top: int | None = None,
    workers: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Put image files in the order in which they fit a text.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    query : str
    images : sequence of path
        Files, folders, lists (.txt) of files.
    candidates : path, optional
        Table of more files with the ``score`` that another system gave them.
    top : int, optional
        Only so many are returned.
    workers : int
        Decoding threads.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    dict
        ``query``; ``results``, best first, a tie by the order in which the files were given: ``rank`` from 1, ``path``, ``score``
        (cosine), and with ``candidates`` ``their_score`` and ``their_rank`` (None for files that are not in the table); ``failed``, a
        list of ``path`` and ``reason``.

    Raises
    ------
    CoreclipError
        For an empty query, no images, images of which none can be read, a table that is damaged, a run that can't be loaded.
    """
    check_query(query)
    if top is not None:
        check_top(top)
    theirs = {} if candidates is None else read_candidates(candidates)
    named = find_images(images) if images or not theirs else []
    paths = list(dict.fromkeys([*theirs, *named]))
    clip = ClipModel.load(run, device)
    features, places, failed = encode_files(clip, paths, workers=workers)
    text = clip.encode_text([query]).cpu().numpy()
    scores = (on_grid(features) @ on_grid(text).T)[:, 0].numpy()  # exact, so that copies of a picture tie
    results = []
    their_ranks = {path: rank for rank, path in enumerate(sorted(theirs, key=lambda path: -theirs[path]), start=1)}
    for rank, i in enumerate(np.argsort(-scores, kind="stable")[:top].tolist(), start=1):
        path = paths[places[i]]
        hit: dict[str, Any] = {"rank": rank, "path": shown_path(path), "score": float(scores[i])}
        if candidates is not None:
            hit |= {"their_score": theirs.get(path), "their_rank": their_ranks.get(path)}
        results.append(hit)
    return {"query": query, "results": results, "failed": failed}


def classify(
    run: str | Path,
    images: Paths,
    class_names: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    top: int = 5,
    workers: int = 2,
    device: str = "cpu",
) -> dict[str, Any]:
    """Classify image files by the names of classes.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    images : sequence of path
        Files, folders, lists (.txt) of files.
    class_names : sequence of str
        Two or more, all different.
    templates : sequence of str
        Prompts with ``{}`` for the class name; a class is the normalised mean of its prompts' features.
    top : int
        At most so many classes are listed of an image.
    workers : int
        Decoding threads.
    device : {"cpu", "cuda", "cuda:N", "auto"}

    Returns
    -------
    dict
        ``classes``; ``results``, in the order of the files: ``path`` and ``predictions``, best first, of ``class``, ``probability`` (the
        softmax over all classes of cosine x exp(logit scale)) and ``score`` (the cosine); ``failed``, a list of ``path`` and
        ``reason``.

    Raises
    ------
    CoreclipError
        For names or templates that are not allowed, no images, images of which none can be read, a run that can't be loaded.
    """
    names = [name.strip() for name in class_names]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise CoreclipError(f"classes = {names} are not allowed: two or more different names, e.g. dog,cat,a red car")
    check_top(top)
    templates = check_templates(templates)
    paths = find_images(images)
    clip = ClipModel.load(run, device)
    classes = class_features(clip, names, templates).cpu().numpy()
    features, places, failed = encode_files(clip, paths, workers=workers)
    scores = features.astype(np.float64) @ classes.T.astype(np.float64)
    logits = np.exp(clip.logit_scale) * scores
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    results = []
    for i, place in enumerate(places.tolist()):
        best = np.argsort(-scores[i], kind="stable")[:top].tolist()
        results.append(
            {
                "path": shown_path(paths[place]),
                "predictions": [
                    {"class": names[j], "probability": float(probabilities[i, j]), "score": float(scores[i, j])}
                    for j in best
                ],
            }
        )
    return {"classes": names, "results": results, "failed": failed}


def encode_files(
    clip: ClipModel, paths: Sequence[Path], *, workers: int = 2
) -> tuple[np.ndarray, np.ndarray, list[dict[str, str]]]:
    """Embed image files, leaving out those that can't be read.

    Returns
    -------
    features : float32 (k, d)
    places : int64 (k,)
        Which of the paths they are of, ascending.
    failed : list of {path, reason}

    Raises
    ------
    CoreclipError
        Where none can be read.
    """
    rows, places, failed = [], [], []
    with Progress(len(paths), "reading images", "images") as progress:
        for seen in see_images(paths, clip.image_size, workers=workers):
            if len(seen.places):
                rows.append(clip.encode_image(seen.pixels.transpose(0, 3, 1, 2)).cpu().numpy())
                places.append(seen.places)
            failed += [{"path": shown_path(paths[place]), "reason": reason} for place, reason in seen.failed]
            progress.advance(len(seen.places) + len(seen.failed))
    if not rows:
        first = failed[0]
        raise CoreclipError(
            f"none of the {len(paths)} images can be read; the first, {first['path']}: {first['reason']}; check the paths"
        )
    return np.concatenate(rows), np.concatenate(places), failed
