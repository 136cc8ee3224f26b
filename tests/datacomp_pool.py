"""A small metadata folder in DataComp's layout, for tests."""

from pathlib import Path

import numpy as np
import pandas as pd

CAPTIONS = (
    "a dog on a beach",
    "ein Hund am Strand mit einem Ball",
    "dogs",
    "",
    "the cat in the hat",
    "un chien sur la plage",
)


def make_pool(
    folder: Path, rows: tuple[int, ...] = (30, 0, 45, 25), *, compressed: bool = False, seed: int = 0, d: int = 8
) -> pd.DataFrame:
    """Write shards of the given numbers of rows and return their metadata, in the order of the index.

    Scores are of one decimal, so that many tie; some texts are empty, some sizes missing or at the filter's borders.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tables = []
    for number, n in enumerate(rows):
        image = rng.normal(size=(n, d))
        text = image + rng.normal(size=(n, d))
        arrays = {}
        for arch, width in (("b32", d), ("l14", d - 2)):
            for side, x in (("img", image), ("txt", text)):
                x = x[:, :width]
                arrays[f"{arch}_{side}"] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
        table = pd.DataFrame(
            {
                "uid": [f"{int(a):016x}{int(b):016x}" for a, b in rng.integers(0, 2**63, (n, 2))],
                "url": [f"http://example.org/{number}/{i}" for i in range(n)],
                "text": [CAPTIONS[i] for i in rng.integers(0, len(CAPTIONS), n)],
                "original_width": pd.array(rng.choice([199, 200, 600, 601, 1000], n), dtype="Int64"),
                "original_height": pd.array(rng.choice([150, 200, 333, 334], n), dtype="Int64"),
                "clip_b32_similarity_score": rng.integers(0, 5, n) / 10,
                "clip_l14_similarity_score": rng.integers(0, 5, n) / 10,
                "sha256": ["0" * 64] * n,
            }
        )
        if n > 3:
            table.loc[0, "original_width"] = pd.NA
            table.loc[1, "clip_l14_similarity_score"] = np.nan
            table.loc[2, "text"] = None
        name = f"{len(rows) - number:032x}"  # the last that is written comes first by its name
        table.to_parquet(folder / f"{name}.parquet", index=False)
        (np.savez_compressed if compressed else np.savez)(folder / f"{name}.npz", **arrays)
        tables.insert(0, table)
    return pd.concat([table for table in tables if len(table)], ignore_index=True)
