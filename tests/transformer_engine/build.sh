#!/usr/bin/env bash
# Builds Transformer Engine's PyTorch extension without a GPU and without CUDA's toolkit, from packages alone, in
# build/transformer_engine; the last line of the output is the path to put before PYTHONPATH:
#
#   bash tests/transformer_engine/build.sh
#
# It takes minutes and a C++ compiler once; a second run with nothing to do ends at once. The versions are those of
# requirements.txt beside this file. Import torch before transformer_engine: it loads NCCL, which the extension needs.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
requirements="$root/tests/transformer_engine/requirements.txt"
python="${PYTHON:-$root/.venv/bin/python}"
folder="$root/build/transformer_engine"
packages="$folder/packages" tools="$folder/tools" cuda="$folder/cuda" source="$folder/source"
stamp="$folder/built" # written last

say() { printf '[transformer engine] %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The versions below one of the headings of requirements.txt.
group() { sed -n "/^# $1:/,/^$/p" "$requirements" | sed '/^#/d;/^$/d'; }

pip() { "$python" -m pip --disable-pip-version-check --quiet "$@" || fail "pip $1 failed (its message is above)"; }

# Python, torch and the requirements: what the extension is built for.
wanted() { "$python" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda)' && cat "$requirements"; }

# One folder as the toolkit has it: the headers that torch's own packages brought, the compiler's and libcu++'s.
gather_headers() {
    local nvidia part
    nvidia="$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])')"
    mkdir -p "$cuda/nvidia/cu13"
    cp -r "$nvidia/cu13/include" "$tools/nvidia/cu13/include" "$cuda/nvidia/cu13/"
    cp -rn "$cuda/nvidia/cu13/include/cccl/." "$cuda/nvidia/cu13/include/"
    for part in cudnn nccl; do ln -sfn "$nvidia/$part" "$cuda/nvidia/$part"; done
}

# pip in an environment where the sources find torch, the headers and the tools.
pip_with_tools() {
    PYTHONPATH="$cuda:$tools" PATH="$tools/bin:$PATH" CPLUS_INCLUDE_PATH="$tools/include" \
        CUDA_HOME="$cuda/nvidia/cu13" CXX="$tools/bin/g++" NVTE_BUILD_USE_NVIDIA_WHEELS=1 \
        NVTE_PYTORCH_FORCE_BUILD=TRUE NVTE_NO_LOCAL_VERSION=1 pip "$@"
}

# Nearly all of the time goes into reading torch's headers and into optimization, for kernels that do not run without a
# GPU: all sources are compiled as one, and not optimized.
make_it_quick() {
    local file
    printf '#!/usr/bin/env bash\nexec %q -w "${@/#-O3/-O0}"\n' "$(command -v g++)" >"$tools/bin/g++"
    chmod +x "$tools/bin/g++"
    find "$source/csrc" -name '*.cpp' | LC_ALL=C sort | while read -r file; do
        mv "$file" "$file.inc"
        printf '#include "%s"\n' "$file.inc"
    done >"$source/all.txt"
    mv "$source/all.txt" "$source/csrc/all.cpp"
}

# The extension goes into the folder of the package transformer_engine: pip must install them together.
build_and_install() {
    local name names
    name="$(group source)"
    mapfile -t names < <(group packages)
    pip_with_tools download --no-deps --no-build-isolation --no-binary :all: --dest "$folder" "$name"
    mkdir -p "$source"
    tar xzf "$folder/${name/==/-}.tar.gz" --strip-components=1 -C "$source"
    make_it_quick
    say "building the extension: some minutes"
    pip_with_tools install --no-deps --no-build-isolation --no-cache-dir --target "$packages" "$source" "${names[@]}"
}

[ -x "$python" ] || fail "there is no $python: run bash tools/setup_env.sh dev"
"$python" -c 'import sys, torch; sys.exit(not (torch.version.cuda or "").startswith("13."))' ||
    fail "Transformer Engine's packages are for CUDA 13, and this environment's torch is built for another version or for CPUs"
command -v g++ >/dev/null || fail "a C++ compiler (g++) is needed to build Transformer Engine"

wanted="$(wanted)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    SECONDS=0
    rm -rf "$folder"
    mkdir -p "$tools"
    say "downloading (0.4 GB)"
    mapfile -t names < <(group tools)
    pip install --no-deps --target "$tools" "${names[@]}"
    gather_headers
    build_and_install
    PYTHONPATH="$packages" "$python" -c 'import torch, transformer_engine.pytorch' ||
        fail "Transformer Engine was built and cannot be imported (the message is above)"
    rm -rf "$source" "$folder"/*.tar.gz
    printf '%s\n' "$wanted" >"$stamp"
    say "done in $SECONDS s: $(du -sh "$folder" | cut -f1)"
fi
echo "$packages"
