"""Images on their way to a device while it computes: one batch ahead, through pinned memory, on a stream of their own."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from coreclip.pipeline import Batch, Loader
from coreclip.training.device import send

_SWITCH_SECONDS = 5e-4


class AheadOnDevice:
    """A loader whose batches' images lie on a device; on the CPU it is the loader itself.

    The next batch is fetched and sent off by a thread while the device works on the one before.

    Parameters
    ----------
    loader : Loader
    device : torch.device
    through : callable, optional
        What the loader's batches are drawn through.
    endless : bool
        Whether an iteration goes on into the passes that follow, whose first batches are then decoded in time. If not, nothing of the
        next pass is fetched at the end of one: what the loader visits may be changed there.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        *,
        through: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
        endless: bool = False,
    ) -> None:
        self._loader, self._device, self._through, self._endless = loader, device, through, endless
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._through(self._loader.endless() if self._endless else iter(self._loader))
        if self._stream is None:
            yield from batches
            return
        stream = self._stream
        # The thread that gives the device its work should not wait 5 ms, Python's default, for those that decode.
        sys.setswitchinterval(_SWITCH_SECONDS)

        def fetch() -> tuple[Batch, torch.cuda.Event, dict[str, Any]] | None:
            batch = next(batches, None)
            return None if batch is None else self._start(batch, stream)

        with ThreadPoolExecutor(1) as thread:
            fetched = thread.submit(fetch)
            while (ahead := fetched.result()) is not None:
                fetched = thread.submit(fetch)
                yield self._arrived(*ahead)

    def set_subset(self, subset: Any) -> None:
        """Visit other pairs from the next pass on; between two passes only."""
        self._loader.set_subset(subset)
        self._state = None

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state after the batch that was delivered last."""
        return self._loader.state_dict() if self._state is None else self._state

    def _start(self, batch: Batch, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event, dict[str, Any]]:
        arrived = torch.cuda.Event()
        with torch.cuda.stream(stream):
            images = send(batch.images, self._device)
            arrived.record(stream)
        return replace(batch, images=images), arrived, self._loader.state_dict()

    def _arrived(self, batch: Batch, arrived: torch.cuda.Event, state: dict[str, Any]) -> Batch:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)
        batch.images.record_stream(current)  # its memory is not another batch's before this stream is done with it
        self._state = state
        return batch
