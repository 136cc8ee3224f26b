"""The resize alone, one thread: ours from a JPEG's planes (4:2:0) to RGB, colours included, against OpenCV on RGB pixels.

OpenCV's INTER_AREA is what FFCV's stock decoders use; it averages boxes. INTER_CUBIC has our kernel, but is not antialiased.
"""

import contextlib

import numpy as np
from side_by_side import arguments, measure, start_peers, table, versions_of, write_result

from coreclip.pipeline.resize import resize_planes


def main() -> None:
    options = arguments(__doc__ or "", width=400, height=533, size=224, repeats=2000, rounds=7)
    width, height, size = options.width, options.height, options.size
    rng = np.random.default_rng(0)
    luma = rng.integers(0, 256, (height + height % 2, width + width % 2), dtype=np.uint8)
    blue, red = (rng.integers(0, 256, (luma.shape[0] // 2, luma.shape[1] // 2), dtype=np.uint8) for _ in range(2))
    out, box = np.empty((size, size, 3), np.uint8), np.array([0.0, 0.0, width, height])

    def run() -> int:
        for _ in range(options.repeats):
            resize_planes(luma, blue, red, (width, height), 1.0, (2, 2), True, box, out)
        return int(options.repeats)

    common = {"width": width, "height": height, "size": size, "repeats": options.repeats}
    with contextlib.ExitStack() as stack:
        filters = {
            f"OpenCV {name}": ("opencv_resize", {**common, "filter_name": name})
            for name in ("INTER_AREA", "INTER_CUBIC")
        }
        peers = start_peers(stack, filters)
        seconds = measure({"coreclip": run, **peers}, rounds=options.rounds, expected=options.repeats)
        body = table(seconds, items=options.repeats, unit="images", ours="coreclip")
    body += f"\n\n{width} x {height} pixels to {size} x {size}, 1 thread."
    write_result(
        f"resize_{width}x{height}_{size}", "Resize alone", body, "coreclip", "numba", peers=versions_of(peers.values())
    )


if __name__ == "__main__":
    main()
