# make demo   the main job on embedded data, into demo-report/
# make test   ruff, mypy and every test: those that measure time one by one, then the others on all cores
# make bench  every benchmark, with results in benchmarks/results/; make bench-peers before it for what they compare with
# Each of them makes the environment in .venv/ when it is not there yet, and only then.

PYTHON ?= python3
PARTS := coreclip tests benchmarks examples
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers
OPEN_CLIP := .venv-open-clip
PROFILERS := .venv-profilers
BENCH_MODULES := benchmarks/faulty_loop.py benchmarks/photographs.py benchmarks/side_by_side.py benchmarks/fresh.py
# These want more than a command line: a GPU, Flickr8k and open_clip, a trained run.
BENCH_APART := benchmarks/gpu.py benchmarks/flickr8k.py benchmarks/flickr8k_options.py benchmarks/training_speed.py \
    benchmarks/export_accuracy.py benchmarks/open_clip_parity.py benchmarks/peer_verdicts.py benchmarks/foreign_loops.py
DEBIAN_PACKAGES := g++ libopencv-dev libturbojpeg0-dev pkg-config python3-dev python3-venv

.PHONY: demo test lint format bench bench-peers bench-open-clip bench-profilers clean

demo: $(READY)
	$(BIN)/coreclip demo demo-report

test: lint
	@sh .ci/debian-packages chromium
	$(BIN)/python -m pytest -m alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" --numprocesses auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check $(wildcard $(PARTS))
	$(BIN)/ruff format --check $(wildcard $(PARTS))
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format $(wildcard $(PARTS))
	$(BIN)/ruff check --fix $(wildcard $(PARTS))

bench: $(READY)
	for script in $(filter-out $(BENCH_MODULES) $(BENCH_APART),$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

bench-peers: $(PEERS)/.ready

$(PEERS)/.ready: benchmarks/peers.txt constraints.txt
	@sh .ci/debian-packages $(DEBIAN_PACKAGES)
	rm -rf $(PEERS)
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	touch $@

bench-open-clip: $(OPEN_CLIP)/.ready

$(OPEN_CLIP)/.ready: benchmarks/open_clip.txt
	rm -rf $(OPEN_CLIP)
	$(PYTHON) -m venv $(OPEN_CLIP)
	$(OPEN_CLIP)/bin/python -m pip install --quiet --requirement benchmarks/open_clip.txt
	touch $@

bench-profilers: $(PROFILERS)/.ready

$(PROFILERS)/.ready: benchmarks/profilers.txt
	rm -rf $(PROFILERS)
	$(PYTHON) -m venv $(PROFILERS)
	$(PROFILERS)/bin/python -m pip install --quiet --requirement benchmarks/profilers.txt
	touch $@

# The stamp is written last: an installation that broke off is begun again.
$(READY): constraints.txt pyproject.toml
	@sh .ci/debian-packages $(DEBIAN_PACKAGES)
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(PEERS) $(OPEN_CLIP) $(PROFILERS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-report
