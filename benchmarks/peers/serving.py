"""The other end of ``side_by_side.Peer``: prepare, say so with the versions in use, then one answer for each line read."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def serve(prepare: Callable[..., Callable[[], Any]], *packages: str) -> None:
    """Call ``prepare(**options)``, options being the JSON of the command line, and then what it returned once a line.

    Answers are JSON, a line each, on what is standard output now; what the peer prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run = prepare(**json.loads(sys.argv[1]))
    print(json.dumps({package: importlib.metadata.version(package) for package in packages}), file=answers)
    for _ in sys.stdin:
        print(json.dumps(run()), file=answers)
