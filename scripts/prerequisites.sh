#!/usr/bin/env bash
# Says what is missing to build this project and to fetch its models, and how to get it.
set -euo pipefail

missing=0
need() {
    echo "missing: $1" >&2
    echo "         $2" >&2
    missing=1
}

command -v cargo >/dev/null || need "cargo (Rust 1.90 or newer)" "install Rust with rustup, or your distribution's package if it is new enough"
command -v "${CXX:-c++}" >/dev/null || need "a C++ compiler" "Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
command -v git >/dev/null || echo "note: no git; --version will not name a commit" >&2
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || need "Python 3 with pip (to download models)" "Debian, Ubuntu: apt-get install python3 python3-pip; Fedora: dnf install python3-pip"
exit $missing
