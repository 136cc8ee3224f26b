"""What a worker process does: read a few images and prepare each."""

import hashlib
from dataclasses import dataclass

from PIL import Image

from coreclip.pipeline.images import ImageRejected, PreparedImage, prepare_grey, prepare_image
from coreclip.pipeline.records import ImageReference, read_image


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Options of :func:`coreclip.pipeline.images.prepare_image`, which describes them."""

    max_side: int | None
    check: str
    max_pixels: int
    quality: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prepared image, or None and the reason; ``content_hash`` is the SHA-256 of the source's image bytes."""

    image: PreparedImage | None
    reason: str
    content_hash: str


def prepare_images(references: list[ImageReference], options: ImageOptions) -> list[Outcome]:
    """Return one outcome for each reference, in their order; a bad image is an outcome, not an exception."""
    Image.MAX_IMAGE_PIXELS = None  # max_pixels rules, and this process does nothing else
    return [_prepare(reference, options) for reference in references]


def _prepare(reference: ImageReference, options: ImageOptions) -> Outcome:
    try:
        data = read_image(reference)
    except OSError as error:
        return Outcome(None, f"the image can't be read: {error.strerror}", "")
    if len(data) != reference.size:
        return Outcome(None, f"the image can't be read: {len(data)} of its {reference.size} bytes are there", "")
    content_hash = hashlib.sha256(data).hexdigest()
    try:
        return Outcome(_to_prepared(data, reference, options), "", content_hash)
    except ImageRejected as rejected:
        return Outcome(None, str(rejected), content_hash)


def _to_prepared(data: bytes, reference: ImageReference, options: ImageOptions) -> PreparedImage:
    if reference.height:
        return prepare_grey(
            data, reference.height, reference.width, max_side=options.max_side, quality=options.quality
        )  # fmt: skip
    return prepare_image(
        data,
        max_side=options.max_side,
        check=options.check,
        max_pixels=options.max_pixels,
        quality=options.quality,
    )
