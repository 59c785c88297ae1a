#!/bin/sh
# Sets up a CUDA compiler without an installed CUDA toolkit and without a GPU:
#
#     cuda-toolkit.sh DEST
#
# NVIDIA publishes nvcc and its libraries as Python wheels; pip fetches them and
# unpacks them into DEST, and a few symbolic links give DEST the layout that nvcc
# and ggml expect of a toolkit. Needs python3 with pip (PYTHON names another
# interpreter). The driver's own library is not among the wheels and not needed.
# A finished DEST is left as it is; an unfinished one is made anew.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
dest=$1
python=${PYTHON:-python3}
done_mark=$dest/.complete-13.0

if [ -f "$done_mark" ]; then
    echo "cuda-toolkit: $dest is complete"
    exit 0
fi

mkdir -p "$(dirname "$dest")"
work=$dest.partial.$$
trap 'rm -rf "$work"' EXIT INT TERM
rm -rf "$work"
mkdir -p "$work"

# Only wheels, only these packages: nothing of them is Python code.
"$python" -m pip install --quiet --no-deps --only-binary :all: --no-compile \
    --target "$work/wheels" \
    "nvidia-cuda-nvcc==13.0.*" \
    "nvidia-cuda-crt==13.0.*" \
    "nvidia-nvvm==13.0.*" \
    "nvidia-cuda-runtime==13.0.*" \
    "nvidia-cuda-cccl==13.0.*" \
    "nvidia-cublas==13.0.*"

# All wheels of CUDA 13 share one tree, nvidia/cu13, laid out like a toolkit.
tree=$work/wheels/nvidia/cu13
if [ ! -x "$tree/bin/nvcc" ] && [ ! -f "$tree/bin/nvcc" ]; then
    echo "cuda-toolkit: no bin/nvcc in the unpacked wheels ($tree)" >&2
    exit 1
fi
find "$tree/bin" "$tree/nvvm/bin" -type f -exec chmod +x {} +

# nvcc looks in lib64, the linker for names without a version.
[ -e "$tree/lib64" ] || ln -s lib "$tree/lib64"
for so in "$tree"/lib/lib*.so.*; do
    [ -e "$so" ] || continue
    name=$(basename "$so")
    plain=$tree/lib/${name%%.so.*}.so
    [ -e "$plain" ] || ln -s "$name" "$plain"
done

rm -rf "$dest"
mv "$tree" "$dest"
: > "$done_mark"
echo "cuda-toolkit: ready in $dest"
