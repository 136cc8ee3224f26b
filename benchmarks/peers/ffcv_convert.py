"""FFCV's DatasetWriter over JPEG files and captions: images in ``jpg`` mode, captions as JSON; prints its seconds.

The samples come as PyTorch data sets give them: the picture that Pillow decodes, which the field encodes anew.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

from ffcv.fields import JSONField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image


class Photographs:
    def __init__(self, folder: str) -> None:
        self.photos = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[str]]:
        photo = self.photos[index]
        with Image.open(photo) as image:
            return image.convert("RGB"), [photo.with_suffix(".txt").read_text()]


def main(folder: str, beton: str, workers: int, page_bytes: int) -> None:
    start = time.perf_counter()
    fields = {"image": RGBImageField(write_mode="jpg"), "captions": JSONField()}
    writer = DatasetWriter(beton, fields, page_size=page_bytes, num_workers=workers)
    dataset = Photographs(folder)
    writer.from_indexed_dataset(dataset)
    seconds = time.perf_counter() - start
    versions = {package: importlib.metadata.version(package) for package in ("ffcv", "opencv-python", "pillow")}
    print(json.dumps({"pairs": len(dataset), "seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
