"""The decode check of a conversion: passing over the codes by compiled tables against libjpeg at an eighth of the sides.

One thread, the same files in memory. The last row hashes them, which conversion does as well.
"""

import hashlib
import tempfile
from pathlib import Path

from photographs import describe, input_name, photo_files
from side_by_side import arguments, measure, table, write_result

from coreclip.pipeline.entropy import ScanChecker
from coreclip.pipeline.images import prepare_image


def main() -> None:
    options = arguments(__doc__ or "", photos="", n=600, width=500, rounds=7)
    with tempfile.TemporaryDirectory() as temporary:
        photos = photo_files(options, Path(temporary))
        files = [photo.read_bytes() for photo in photos]
        summary = describe(photos)
    checker = ScanChecker()
    contestants = {
        "compiled tables": lambda: sum(map(checker.is_clean, files)),
        "libjpeg, headers included": lambda: sum(prepare_image(data).warning == "" for data in files),
        "SHA-256": lambda: sum(len(hashlib.sha256(data).digest()) == 32 for data in files),
    }
    seconds = measure(contestants, rounds=options.rounds, expected=len(files))
    body = table(seconds, items=len(files), unit="images", ours="compiled tables") + f"\n\n{summary}; 1 thread."
    write_result(f"check_{input_name(options)}", "The decode check", body, "coreclip", "numba")


if __name__ == "__main__":
    main()
