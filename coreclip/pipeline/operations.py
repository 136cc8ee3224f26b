"""FFCV's own image transforms in our loader: ``ffcv.pipeline.operation.Operation`` objects on decoded batches.

Those fit that FFCV compiles and that map (b, h, w, 3) arrays to arrays of as many rows: flips, cutout, translations,
normalisation. They draw from numba's generator, which is seeded for each batch, so that a run repeats with the same
batches; unlike ``Augment``, what they draw depends on the batch size. FFCV is imported by whoever makes the objects.
Left out: operations on torch tensors or a GPU, on labels, and those that share memory between batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.core.errors import NumbaError

from coreclip.errors import CoreclipError


@dataclass(frozen=True)
class _Step:
    name: str
    function: Callable[..., np.ndarray]
    takes_indices: bool
    memory: tuple[tuple[int, ...], Any] | None  # shape and dtype of one row


class Operations:
    """A sequence of operations, compiled once and tried on two black images.

    Parameters
    ----------
    operations : sequence of ffcv Operation
    image_size : int
        Side of the images that come in, pixels.

    Raises
    ------
    CoreclipError
        For an object that is no such operation, can't be compiled, or changes the number of rows.
    """

    def __init__(self, operations: Sequence[Any], image_size: int) -> None:
        self._steps: list[_Step] = []
        self._half = False
        shape: tuple[int, ...] = (image_size, image_size, 3)
        dtype: Any = np.dtype(np.uint8)
        for operation in operations:
            step, shape, dtype = _compiled(operation, shape, dtype)
            self._steps.append(step)
            # FFCV's normalisation carries half precision as 16-bit integers, which its ToTorchImage turns back.
            self._half = getattr(operation, "original_dtype", None) == np.float16 and dtype == np.int16
        self(np.zeros((2, image_size, image_size, 3), np.uint8), np.arange(2), 0)

    def __call__(self, images: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
        """Apply the operations to a batch, which they may write to.

        Parameters
        ----------
        images : uint8 (b, size, size, 3)
        index : int64 (b,)
        seed : int
            Of numba's generator in this thread, 0 to 2**32 - 1.

        Returns
        -------
        (b, h, w, 3)
            Of the type that the last operation makes; memory of its own or that of ``images``.
        """
        _seed_numba(seed)
        n = len(images)
        for step in self._steps:
            memory = None if step.memory is None else np.empty((n, *step.memory[0]), step.memory[1])
            arguments = (images, memory, index) if step.takes_indices else (images, memory)
            try:
                images = step.function(*arguments)
            except NumbaError as error:
                cause = next((line for line in str(error).splitlines() if line.strip()), "")
                raise CoreclipError(
                    f"operation {step.name} can't be compiled for images of type {images.dtype} and shape "
                    f"{images.shape}: {cause}; apply it to the batches instead"
                ) from None
            shape: tuple[int, ...] = getattr(images, "shape", ())
            if len(shape) != 4 or shape[0] != n or shape[3] != 3:
                raise CoreclipError(
                    f"operation {step.name} makes {shape} of a batch of {n} images: it must return (rows, h, w, 3) "
                    "and as many rows; apply it to the batches instead"
                )
        return images.view(np.float16) if self._half else images


def _compiled(operation: Any, shape: tuple[int, ...], dtype: Any) -> tuple[_Step, tuple[int, ...], Any]:
    name = type(operation).__name__
    if not (hasattr(operation, "declare_state_and_memory") and hasattr(operation, "generate_code")):
        raise CoreclipError(
            f"operation {operation!r} is none of FFCV's: it must have declare_state_and_memory and generate_code, "
            "e.g. ffcv.transforms.RandomHorizontalFlip()"
        )
    import torch
    from ffcv.pipeline.state import State

    before = State(jit_mode=True, device=torch.device("cpu"), shape=shape, dtype=dtype)
    after, memory = operation.declare_state_and_memory(before)
    if not after.jit_mode or after.device != torch.device("cpu"):
        raise CoreclipError(
            f"operation {name} works on torch tensors, not in compiled code: apply it to batch.images instead"
        )
    if memory is not None and not hasattr(memory, "shape"):
        raise CoreclipError(f"operation {name} asks for several arrays: one at most is given; apply it to the batches")
    code = operation.generate_code()
    step = _Step(
        name=name,
        function=njit(nogil=True, fastmath=True, error_model="numpy")(code),
        takes_indices=bool(getattr(code, "with_indices", False)),
        memory=None if memory is None else (tuple(memory.shape), np.dtype(memory.dtype)),
    )
    return step, tuple(after.shape), after.dtype


@njit(cache=True, nogil=True)
def _seed_numba(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - numba's, of this thread, which is the one that FFCV's code draws from
