"""Decode + random crop + resize to a square: our loader against FFCV's stock decoder, Pillow in a DataLoader, DALI's CPU.

The same JPEG bytes, the same number of threads or workers, a warm cache, each peer in a process of its own that waits
while the others run; a round is as many epochs as make about ``--images`` images. Every contestant uses its own
filter: ours and Pillow the antialiased bicubic, FFCV OpenCV's INTER_AREA, DALI its antialiased triangle. The last row
is the entropy decoding alone (the smallest inverse DCT, 1/8, no crop, no resize), which no decoder of these bytes can
leave out.
"""

import contextlib
import ctypes
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from photographs import describe, input_name, one_shard, photo_files
from side_by_side import arguments, measure, start_peers, table, versions_of, write_result

from coreclip.pipeline import make_loader
from coreclip.pipeline.decode import load_decoder


def main() -> None:
    options = arguments(
        __doc__ or "", photos="", n=600, width=500, size=224, low=0.9, threads=0, rounds=7, batch_size=64, images=3000
    )
    threads = options.threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        photos = photo_files(options, Path(temporary))
        dataset = one_shard(photos, Path(temporary), workers=threads)
        epochs = math.ceil(options.images / dataset.n)
        common = {
            "size": options.size, "low": options.low, "threads": threads, "batch_size": options.batch_size, "epochs": epochs
        }  # fmt: skip
        ours = make_loader(
            dataset, batch_size=options.batch_size, image_size=options.size, crop_scale=(options.low, 1.0), workers=threads
        )  # fmt: skip
        beton, folder = str(dataset.shard_path(0)), str(photos[0].parent)
        peers = start_peers(
            stack,
            {
                "FFCV stock Loader": ("ffcv_loader", {"task": "decode", "beton": beton, **common}),
                "torch DataLoader + Pillow": ("pillow_loader", {"photos": folder, **common}),
                "DALI, random_resized_crop": ("dali_loader", {"photos": folder, "variant": "whole", **common}),
                "DALI, image_random_crop": ("dali_loader", {"photos": folder, "variant": "fused", **common}),
            },
        )
        jpegs = [dataset.image_bytes(index) for index in range(dataset.n)]
        contestants = {
            "coreclip": lambda: sum(len(batch) for _ in range(epochs) for batch in ours),
            **peers,
            "limit: entropy decoding alone": entropy_decoding(stack, jpegs * epochs, threads),
        }
        items = epochs * dataset.n
        seconds = measure(contestants, rounds=options.rounds, expected=items)
        body = table(seconds, items=items, unit="images", ours="coreclip")
        body += f"\n\n{describe(photos)}; {threads} threads, batches of {options.batch_size}."
    write_result(
        f"decode_{options.size}_{options.low:g}_{input_name(options)}",
        f"Decode, crop ({options.low:g} - 1) and resize to {options.size} pixels",
        body,
        "coreclip",
        "numba",
        "torch",
        peers=versions_of(peers.values()),
    )


def entropy_decoding(stack: contextlib.ExitStack, jpegs: list[bytes], threads: int) -> Callable[[], int]:
    """Return a contestant that decodes each file to an eighth of its sides, the parts of the list on threads."""
    library = load_decoder()
    library.tjInitDecompress.restype = ctypes.c_void_p
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    address = ctypes.c_void_p

    def decode(part: list[bytes]) -> int:
        handle = address(library.tjInitDecompress())
        width, height, subsampling, colours = (ctypes.c_int() for _ in range(4))
        pixels, n = np.empty(0, np.uint8), 0
        for jpeg in part:
            size = ctypes.c_ulong(len(jpeg))
            sides = [ctypes.byref(number) for number in (width, height, subsampling, colours)]
            library.tjDecompressHeader3(handle, jpeg, size, *sides)
            w, h = (width.value + 7) // 8, (height.value + 7) // 8
            if pixels.size < 3 * w * h:
                pixels = np.empty(3 * w * h, np.uint8)
            n += library.tjDecompress2(handle, jpeg, size, address(pixels.ctypes.data), w, 0, h, 0, 0) == 0
        library.tjDestroy(handle)
        return n

    parts = [jpegs[start::threads] for start in range(threads)]
    return lambda: sum(pool.map(decode, parts))


if __name__ == "__main__":
    main()
