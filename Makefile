# The commands of the README. Nothing is hidden in them: each is a line or two that can be typed.

CARGO ?= cargo
QUESTION ?= Who appears to the guards at midnight?

.DEFAULT_GOAL := help
.PHONY: help build demo test lint fetch clean

help:
	@echo "make demo    build, fetch a small model and a long text, ask a question about it"
	@echo "make test    all tests (fetches the small model)"
	@echo "make build   target/release/spts-cli"
	@echo "make lint    formatting and Clippy"
	@echo "make fetch   all models and texts of the tests and benchmarks (2 GiB)"
	@echo "make clean   remove build results, keep models"

build:
	$(CARGO) build --release

# The same question twice: with every token computed, then with tokens skipped.
demo:
	scripts/prerequisites.sh
	$(CARGO) build --release
	scripts/fetch.sh smollm2-135m hamlet
	$(CARGO) run --release --quiet -- -m models/smollm2-135m.gguf -f models/hamlet-1.md -p "$(QUESTION)" -n 64 --temp 0 --no-spts
	$(CARGO) run --release --quiet -- -m models/smollm2-135m.gguf -f models/hamlet-1.md -p "$(QUESTION)" -n 64 --temp 0 --schedule 0.5,0.4,0.3,0.2 --no-proxy

# Tests of other models run if `make fetch` got them, and say so if not.
test:
	scripts/fetch.sh smollm2-135m
	$(CARGO) test --workspace

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

fetch:
	scripts/fetch.sh smollm2-135m gemma-3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b vocabs hamlet bible essays

clean:
	$(CARGO) clean
