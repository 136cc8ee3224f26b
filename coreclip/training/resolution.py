"""Image sizes that grow over the budget: cheap steps at first, the size that the model is used at in the end.

"Progressive resizing" of the fast.ai entry to DAWNBench (Howard et al. 2018), and "progressive learning" of EfficientNetV2 (Tan and
Le 2021, arXiv 2104.00298). That the last stage is at the size of use is what FixRes asks for (Touvron et al. 2019, arXiv 1906.06423).
Left out: augmentation that grows with the size, and batches that shrink with it.
"""

from collections.abc import Callable, Iterator, Sequence

from coreclip.pipeline import Batch, Loader


def size_at(sizes: Sequence[int], fraction: float) -> int:
    """Return the image size of a batch.

    Parameters
    ----------
    sizes : sequence of int
        Of equal parts of the budget, pixels; one at least.
    fraction : float
        Of the budget that is used before the batch, 0 to 1; of samples it counts those that were delivered.
    """
    return sizes[min(int(fraction * len(sizes)), len(sizes) - 1)]


class GrowingImages:
    """Sets a loader's image size before each batch that is drawn from it.

    Parameters
    ----------
    loader : Loader
    sizes : sequence of int
        As of :func:`size_at`; none leaves the loader's.
    delivered : int
        Pairs of the batches before, as ``count`` counts them. A batch's size depends on those alone, not on when it is drawn, so
        that whoever draws a batch ahead of its step, and goes on after a stop, gets the same.
    count, used : callable
        Pairs of a batch that count in the budget; the fraction of it that is used after so many.
    """

    def __init__(
        self,
        loader: Loader,
        sizes: Sequence[int],
        *,
        delivered: int,
        count: Callable[[Batch], int],
        used: Callable[[int], float],
    ) -> None:
        self._loader, self._sizes, self._delivered = loader, sizes, delivered
        self._count, self._used = count, used

    def size_after(self, delivered: int) -> int:
        """Return the size of the batch that follows so many pairs."""
        return size_at(self._sizes, self._used(delivered)) if self._sizes else self._loader.image_size

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches."""
        while True:
            self._loader.set_image_size(self.size_after(self._delivered))
            batch = next(batches, None)
            if batch is None:
                return
            self._delivered += self._count(batch)
            yield batch
