#!/usr/bin/env bash
# What needs a GPU, in one command of at most ten minutes: training from a data set of 224-pixel JPEGs against open_clip, and selection
# of a million pairs. Writes benchmarks/results/gpu.md. Options are those of gpu.py; PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
