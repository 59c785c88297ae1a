#!/usr/bin/env bash
# Says what is missing to build this project and to fetch its models, and how to get it.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
missing=0
need() {
    echo "missing: $1" >&2
    echo "         $2" >&2
    missing=1
}

# older FOUND WANTED: whether one version comes before the other.
older() {
    [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
rust="install it with rustup (rustup update, if it is there), or take your distribution's package if that is new enough"
if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
    need "cargo and rustc $wanted or newer" "$rust"
else
    found=$(rustc --version | cut -d ' ' -f 2 | cut -d - -f 1)
    if older "$found" "$wanted.0"; then
        need "rustc $wanted or newer (this is $found)" "$rust"
    fi
fi

# A compiler that is named but does not work is found out here, not after minutes.
if ! echo 'int main() { return 0; }' | "${CXX:-c++}" -std=c++17 -x c++ -o /dev/null - 2>/dev/null; then
    need "a C++17 compiler" "Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; Arch: pacman -S gcc; openSUSE: zypper install gcc-c++; macOS: xcode-select --install"
fi

if ! "${PYTHON:-python3}" -m pip --version >/dev/null 2>&1; then
    need "Python 3 with pip (to download models)" "Debian, Ubuntu: apt-get install python3 python3-pip; Fedora: dnf install python3-pip; Arch: pacman -S python-pip; openSUSE: zypper install python3-pip; macOS: python3 -m ensurepip"
fi

command -v git >/dev/null || echo "note: no git; --version will not name a commit" >&2
exit $missing
