"""What watching costs, and how true a predicted speed-up is: a stage's overhead, and prefetching predicted and measured."""

import time
from collections.abc import Iterator

from faulty_loop import ahead
from side_by_side import arguments, write_result

from coreclip.profiling import StageRecorder, diagnose, measure_remedy


def stage_microseconds(calls: int = 2000, rounds: int = 20) -> list[float]:
    """Return the cost of opening and closing a stage in each round, microseconds."""
    stage, costs = StageRecorder().stage, []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            with stage("forward"):
                pass
        costs.append((time.perf_counter() - start) / calls * 1e6)
    return sorted(costs)


class SleepingLoader:
    """Batches that take ``seconds`` each, in the loop's thread or one ahead of it."""

    def __init__(self, seconds: float, n: int, *, ahead: bool) -> None:
        self.seconds, self.n, self.ahead = seconds, n, ahead

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[list[int]]:
        return ahead(self._make()) if self.ahead else self._make()

    def _make(self) -> Iterator[list[int]]:
        for number in range(self.n):
            time.sleep(self.seconds)
            yield [number] * 4


def main() -> None:
    options = arguments(__doc__ or "", batches=40, milliseconds=30, repeats=5)
    seconds = options.milliseconds / 1e3

    def step(batch: object) -> None:
        time.sleep(seconds)

    def epoch(loader: SleepingLoader) -> None:
        for batch in loader:
            step(batch)

    slow = SleepingLoader(seconds, options.batches, ahead=False)
    fast = SleepingLoader(seconds, options.batches, ahead=True)
    diagnosis = diagnose(step, slow, steps=options.batches, warmup=3, repeats=options.repeats)
    remedy = next(remedy for remedy in diagnosis.remedies if remedy.name == "prefetch")
    measured = measure_remedy(lambda: epoch(slow), lambda: epoch(fast), repeats=options.repeats)
    costs = stage_microseconds()
    body = "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| a stage, microseconds | {costs[len(costs) // 2]:.2f} ({costs[0]:.2f} - {costs[-1]:.2f}) |",
            f"| prefetching, predicted speed-up | {remedy.predicted_speedup:.2f} ({remedy.low:.2f} - {remedy.high:.2f}) |",
            f"| prefetching, measured | {measured.speedup:.2f} ({measured.low:.2f} - {measured.high:.2f}) |",
            f"| error of the prediction | {100 * (remedy.predicted_speedup / measured.speedup - 1):+.1f} % |",
        ]
    )
    write_result("profiler", "Watching a loop, and predicting what prefetching brings", body, "coreclip", "numpy")


if __name__ == "__main__":
    main()
