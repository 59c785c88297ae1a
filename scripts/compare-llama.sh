#!/bin/sh
# Compares the dense runtime with llama.cpp on this machine's CPU, in turns, and prints a Markdown table.
#
#   scripts/compare-llama.sh --llama-bench PATH --llama-simple PATH [options] MODEL.gguf ...
#
# Build llama-bench and llama-simple from llama.cpp as its README says (Release, native), and this project with
# `make build`; nothing is built here. `--help` lists the options. Keep the machine quiet meanwhile.
exec python3 "$(dirname "$0")/compare-llama.py" "$@"
