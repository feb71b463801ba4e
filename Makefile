# Thin: every recipe is what a person would type. `make serve` and `make test` need Rust, Python 3.11 to 3.13, a C compiler.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build serve test lint bench bench-router proto nightly gpu-report clean

PY := .venv/bin/python
# uv, where set-up had to fetch it.
export PATH := $(PATH):$(CURDIR)/.venv-uv/bin
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Runs $(2) and says how long stage $(1) took.
stage = @begin=$$(date +%s); echo "== $(1)"; $(2); echo "== $(1): $$(($$(date +%s) - begin)) s"

# Python edits are live; binaries are copied only when cargo made new ones.
build: .venv/stamp
	@cargo build --release --bins
	@for name in launcher router; do \
	    cmp --silent $(TARGET)/release/$$name .venv/bin/$$name || install -m 755 $(TARGET)/release/$$name .venv/bin/$$name; \
	done

.venv/stamp: constraints.txt tests/requirements.txt pyproject.toml kernels/pyproject.toml .ci/setup-venv
	@cargo build --release --bins
	@.ci/setup-venv
	@touch $@

.venv-%/stamp: tests/requirements-%.txt .ci/setup-venv
	@.ci/setup-venv $*
	@touch $@

# ARGS="--port 8080 --model-id X". exec, so that Ctrl-C and signals reach the launcher itself.
serve: build
	@exec .venv/bin/launcher $(ARGS)

test: build .venv-clients/stamp
	$(call stage,rust tests,cargo test --release --quiet --workspace)
	$(call stage,python tests,$(PY) -m pytest -q -m "not gpu and not slow and not e2e")
	$(call stage,end-to-end tests,$(PY) -m pytest -q -m "e2e and not gpu and not slow")

lint: .venv/stamp
	cargo fmt --all --check
	cargo clippy --release --quiet --workspace --all-targets -- -D warnings
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: build
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/overlap.py
	$(PY) benchmarks/host_step.py
	$(PY) benchmarks/serving.py
	$(PY) benchmarks/long_prompt.py

bench-router: build
	$(PY) benchmarks/router.py
	$(PY) benchmarks/scheduler.py

# The kernels on the oldest Triton: by its interpreter, and compiled for a Hopper.
TRITON_TESTS := kernels/tests/test_triton_interpreter.py kernels/tests/test_compile_for_hopper.py

nightly: build .venv-clients/stamp .venv-triton36/stamp
	PENSTOCK_TRANSITIONS=1000000 cargo test --release --quiet --workspace --lib every_history_keeps_the_rules -- --nocapture
	$(PY) -m pytest -q -m "slow and not gpu"
	.venv-triton36/bin/python -m pytest -q -m "not gpu" $(TRITON_TESTS)

# All that needs a GPU, in parts: given again, it goes on with what is left. 16 GB of files are made where they are read
# fastest.
GPU_MODEL ?= /dev/shm/penstock-8b

gpu-report: build
	$(PY) benchmarks/gpu_report.py --model $(GPU_MODEL) $(ARGS)

# Stubs of the oldest grpcio-tools that is supported: they refuse to import beside anything older.
proto: .venv/stamp
	$(PY) server/generate_stubs.py

clean:
	rm -rf .venv .venv-clients .venv-uv
	cargo clean
