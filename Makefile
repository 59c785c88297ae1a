# The commands of the README. Nothing is hidden in them: each is a few lines that can be typed.

CARGO ?= cargo
LINTS = -D warnings -D clippy::incompatible_msrv
QUESTION ?= What is the name of the nurse who made a list of regrets?
# The toolkit that `make cuda` sets up, unless there is another one.
CUDA_PATH ?= $(CURDIR)/.cuda
DIST = dist/spts-$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)-$(shell uname -s | tr A-Z a-z)-$(shell uname -m)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint deny fetch cuda test-cuda dist dist-cuda clean

help:
	@echo "make demo       build, fetch a small model and some essays (490 MiB), ask a question about them"
	@echo "make test       all tests (fetches the small model)"
	@echo "make build      target/release/spts-cli"
	@echo "make lint       formatting, Clippy and documentation, of all features, and the fuzz targets; licences and sources of crates"
	@echo "make fetch      all models and texts of the tests and benchmarks (2 GiB)"
	@echo "make cuda       NVIDIA's compiler into .cuda, and the program with CUDA"
	@echo "make test-cuda  the tests that need a GPU"
	@echo "make dist       a package for any machine of this kind; dist-cuda: with CUDA"
	@echo "make clean      remove build results, keep models"

build:
	$(CARGO) build --release

# The same question twice: with every token computed, then with tokens skipped.
demo:
	scripts/prerequisites.sh
	$(CARGO) build --release
	scripts/fetch.sh qwen2.5-coder-0.5b essays
	$(CARGO) run --release --quiet -- -m models/qwen2.5-coder-0.5b.gguf -f models/essays-1.txt -p "$(QUESTION)" -n 64 --temp 0 --no-spts
	$(CARGO) run --release --quiet -- -m models/qwen2.5-coder-0.5b.gguf -f models/essays-1.txt -p "$(QUESTION)" -n 64 --temp 0 --schedule 0.6,0.5,0.4,0.3

# Tests of other models run if `make fetch` got them, and say so if not.
test:
	scripts/fetch.sh smollm2-135m
	$(CARGO) test --workspace

# For the features that have kernels of their own the Rust alone is read: that takes no nvcc and no hour.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- $(LINTS)
	GGML_CHECK_ONLY=1 $(CARGO) clippy --workspace --all-targets --features cuda -- $(LINTS)
	GGML_CHECK_ONLY=1 $(CARGO) clippy --workspace --all-targets --features portable -- $(LINTS)
	$(CARGO) clippy --no-default-features --lib --examples -- -D warnings
	GGML_CHECK_ONLY=1 $(CARGO) clippy --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
	GGML_CHECK_ONLY=1 RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --features cuda,portable
	scripts/deny.sh

# `scripts/deny.sh advisories` also asks for known vulnerabilities, where their database can be fetched.
deny:
	scripts/deny.sh

fetch:
	scripts/fetch.sh smollm2-135m gemma-3-270m qwen2.5-coder-0.5b qwen2.5-coder-1.5b vocabs hamlet bible essays

# An hour of compiling per architecture the first time; GGML_CUDA_ARCHS=90a-real builds for one.
cuda: $(CUDA_PATH)/bin/nvcc
	CUDA_PATH=$(CUDA_PATH) $(CARGO) build --release --features cuda

$(CURDIR)/.cuda/bin/nvcc:
	vendor/ggml-sys/cuda-toolkit.sh $(CURDIR)/.cuda

test-cuda: $(CUDA_PATH)/bin/nvcc
	CUDA_PATH=$(CUDA_PATH) $(CARGO) test --release --features cuda --test cuda --test cuda_kernels

# Packages: the program, and for CUDA the two libraries of NVIDIA that it opens beside itself.
dist:
	$(CARGO) build --release --features portable
	mkdir -p $(DIST)
	cp target/release/spts-cli README.md LICENSE $(DIST)
	tar -C dist -czf $(DIST).tar.gz $(notdir $(DIST))

dist-cuda: $(CUDA_PATH)/bin/nvcc
	CUDA_PATH=$(CUDA_PATH) $(CARGO) build --release --features portable,cuda
	mkdir -p $(DIST)-cuda
	cp target/release/spts-cli README.md LICENSE $(DIST)-cuda
	cp -L $(CUDA_PATH)/lib64/libcublas.so.[0-9]* $(CUDA_PATH)/lib64/libcublasLt.so.[0-9]* $(DIST)-cuda
	tar -C dist -czf $(DIST)-cuda.tar.gz $(notdir $(DIST))-cuda

clean:
	$(CARGO) clean
