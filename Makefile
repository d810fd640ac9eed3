# Larder: one page of commands. Each sets up what it needs; `make help` lists them.
#
# Variables: PROFILE=debug|release (what `make build` and `make demo` use), KEEP=1 (`make demo` leaves its servers up),
# STREAM=auto|kafka|push (`make demo`), CARGO_TARGET_DIR, LARDER_CACHE, KAFKA_BOOTSTRAP_SERVERS, PYTEST_ARGS,
# BENCH_ARGS, FUZZ_SECONDS, FUZZ_TARGETS.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A release build takes about six times the CPU of a debug one (mostly DataFusion), and the demo needs no speed.
PROFILE ?= debug
LARDER_CACHE ?= $(HOME)/.cache/larder
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROFILE_FLAG := $(if $(filter release,$(PROFILE)),--release)
PYTHON_CODE := demo examples feature_repo integration-tests src/bench/python src/offline/src/transform/worker.py
export LARDER_CACHE
export PYTHONWARNINGS ?= ignore
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help parity soak-parity setup build demo test test-rust test-integration fuzz bench-online bench-offline bench-streams lint advisories format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

setup: ## system packages (Debian), Python environment, Kafka's jars; quick when all is there
	@scripts/setup.sh

build: setup ## the binary, with PROFILE (default debug)
	cargo build --locked -p app $(PROFILE_FLAG)

demo: build ## the whole of Larder on the flights of 2013; KEEP=1 leaves it running
	@PYTHONPATH=integration-tests .venv/bin/python demo/demo.py --binary $(TARGET)/$(PROFILE)/larder

test: setup test-rust test-integration ## every test: Rust, then the real Feast SDK and a real Kafka against the binary

test-rust: setup ## cargo test of the whole workspace
	cargo test --workspace --locked

test-integration: ## pytest against the debug binary; PYTEST_ARGS="-k word -x"
	@scripts/setup.sh --tests
	cargo build --workspace --bins --locked
	LARDER_BIN=$(abspath $(TARGET))/debug/larder \
	    .venv/bin/python -m pytest -c integration-tests/pytest.ini integration-tests $(PYTEST_ARGS)

fuzz: ## libFuzzer on the decoders, FUZZ_SECONDS=60 each; FUZZ_TARGETS="body value"; fails where it finds something
	@scripts/fuzz.sh

bench-online: setup ## online serving beside its peers, on a quiet machine; BENCH_ARGS="--only grpc-100x50 --seconds 2"
	cargo build --locked --release -p app --no-default-features
	cargo build --locked --release -p bench
	$(TARGET)/release/larder-bench online --server $(TARGET)/release/larder \
	    --work $(TARGET)/bench-online --report docs/benchmarks/online.md $(BENCH_ARGS)

bench-offline: setup ## training sets beside their peers, on a quiet machine; BENCH_ARGS="--only A,B --runs 1 --scale 0.01"
	cargo build --locked --release -p app
	cargo build --locked --release -p bench
	$(TARGET)/release/larder-bench offline --server $(TARGET)/release/larder \
	    --work $(TARGET)/bench-offline --report docs/benchmarks/offline.md $(BENCH_ARGS)

bench-streams: ## windows over 1,000,000 events: from a file, from Kafka, and PyFlink and PySpark; BENCH_ARGS="--runs 1"
	@scripts/setup.sh --tests
	cargo build --locked --release -p app
	cargo build --locked --release -p bench
	mkdir -p $(TARGET)/bench-streams
	test -s $(TARGET)/bench-streams/events.jsonl || python3 ../shared/bench/events.py $(TARGET)/bench-streams/events.jsonl
	$(TARGET)/release/larder-bench streams --events $(TARGET)/bench-streams/events.jsonl \
	    --server $(TARGET)/release/larder --work $(TARGET)/bench-streams --report docs/benchmarks/streams.md $(BENCH_ARGS)

parity: build ## windows online beside training sets at the same moment: zero differences is the only good number
	LARDER_BIN=$(abspath $(TARGET))/debug/larder \
	    .venv/bin/python -m pytest -c integration-tests/pytest.ini integration-tests/test_parity.py -q

soak-parity: build ## the same with random histories for SOAK_SECONDS=600
	SOAK_SECONDS=$(or $(SOAK_SECONDS),600) LARDER_BIN=$(abspath $(TARGET))/debug/larder \
	    .venv/bin/python -m pytest -c integration-tests/pytest.ini integration-tests/test_parity.py -q -k random

lint: ## rustfmt, clippy, cargo-deny, typos, ruff, mypy
	@scripts/setup.sh --lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	"$(LARDER_CACHE)/cargo-deny/bin/cargo-deny" --locked check bans licenses sources
	.venv/bin/typos
	.venv/bin/ruff check $(PYTHON_CODE)
	.venv/bin/ruff format --check $(PYTHON_CODE)
	.venv/bin/mypy --no-error-summary

advisories: ## known vulnerabilities of dependencies (not in `lint`: it must reach the RustSec database on GitHub)
	@scripts/setup.sh --lint
	"$(LARDER_CACHE)/cargo-deny/bin/cargo-deny" check advisories

format: setup ## rustfmt and ruff, writing
	cargo fmt --all
	.venv/bin/ruff check --fix $(PYTHON_CODE)
	.venv/bin/ruff format $(PYTHON_CODE)

clean: ## what was built and prepared in this checkout (not the cache)
	cargo clean
	rm -rf .venv demo-out feature_repo/data
