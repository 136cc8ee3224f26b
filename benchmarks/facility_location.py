"""Exact facility location against apricot's lazy optimiser and submodlib's, in turn, on points drawn afresh every round.

Each is a process of its own, for its own peak memory, and tells the objective of its picks, with the same cosines for all. A first
round is not counted.
"""

import contextlib
import statistics
import sys
from typing import Any

from side_by_side import Peer, arguments, have_peers, versions_of, write_result


def main() -> None:
    options = arguments(__doc__ or "", n=10_000, d=64, k=1_000, rounds=5, submodlib_rounds=3)
    common = {"n": options.n, "d": options.d, "k": options.k}
    answers: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:

        def start(library: str, **python: Any) -> Peer:
            return stack.enter_context(Peer("facility_location", library=library, first_seed=0, **common, **python))

        contestants = {name: start(name, python=sys.executable) for name in ("coreclip", "apricot")}
        theirs = {"submodlib": start("submodlib")} if have_peers() else {}
        for number in range(1 + options.rounds):
            for name, run in (contestants | theirs).items():
                if name != "submodlib" or number <= options.submodlib_rounds:
                    answers.setdefault(name, []).append(run())
    lines = [
        "| | seconds, median | lowest - highest | peak MiB | objective against ours, lowest | ours is faster by |",
        "|---|---|---|---|---|---|",
    ]
    own = answers["coreclip"][1:]
    for name, rounds in answers.items():
        counted = rounds[1:]
        seconds = [answer["seconds"] for answer in counted]
        pairs = list(zip(counted, own, strict=False))
        faster = [answer["seconds"] / ours["seconds"] for answer, ours in pairs]
        ratio = min(answer["objective"] / ours["objective"] for answer, ours in pairs)
        lines.append(
            f"| {name} | {statistics.median(seconds):.3g} | {min(seconds):.3g} - {max(seconds):.3g} "
            f"| {counted[-1]['peak_mib']:,.0f} | {ratio:.8f} "
            f"| {'' if name == 'coreclip' else f'{statistics.median(faster):.1f}x ({min(faster):.1f} - {max(faster):.1f})'} |"
        )
    lines += [
        "",
        f"n = {options.n:,}, d = {options.d}, k = {options.k:,}, similarities included; {options.rounds} fresh draws after a first one"
        + (f", {options.submodlib_rounds} of submodlib's, whose cosine is not clipped at 0." if theirs else "."),
    ]
    write_result(
        "facility_location", "Facility location, exact", "\n".join(lines), "coreclip", "apricot-select", "numba", "numpy",
        peers=versions_of(theirs.values()),
    )  # fmt: skip


if __name__ == "__main__":
    main()
