#!/usr/bin/env bash
# Makes .venv in the repository's root and installs this package in it, editable, with the extras named as arguments:
#
#   bash tools/setup_env.sh dev quickstart
#
# A second run with nothing to do ends at once. A run that was interrupted is continued, and two runs at the same
# time wait for one another. PYTHON names the interpreter to use; otherwise one is looked for (see candidates below).
# pip reads its ordinary settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...): point them at a mirror, or
# at an index of CPU builds of torch, where that is wanted.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
stamp="$venv/.megatron-mixcpt-installed" # line 1: digest of the requirements, line 2: the extras; written last

say() { printf '[set-up] %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs the interpreter rather than trusting its name: pyenv's shims exist also for versions that are switched off.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' 2>/dev/null; }

candidates() {
    local name
    for name in python3.12 python3.13 python3 python; do command -v "$name" || true; done
    for name in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python; do
        if [ -x "$name" ]; then echo "$name"; fi
    done
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.12 or 3.13 with venv and ensurepip; unset it or name another"
        command -v "$PYTHON"
        return
    fi
    while IFS= read -r candidate; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done < <(candidates)
    if command -v uv >/dev/null; then
        uv python find '>=3.12,<3.14' 2>/dev/null && return
        say "installing Python 3.12 with uv" >&2
        uv python install 3.12 >&2 && uv python find '>=3.12,<3.14' && return
    fi
    fail "found no Python 3.12 or 3.13 with venv on PATH, in pyenv or through uv; install one (for example 'pyenv" \
        "install 3.12', 'uv python install 3.12', or your system's python3.12 and python3.12-venv packages) and run" \
        "this again, or name it: PYTHON=/path/to/python3.12"
}

make_venv() {
    local python
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        usable "$venv/bin/python" ||
            fail "$venv holds $("$venv/bin/python" -V 2>&1), and Python 3.12 or 3.13 is needed; move that folder away and run this again"
        "$venv/bin/python" -c 'import pip' 2>/dev/null && return
    fi
    python="$(find_python)"
    say "making $venv with $python ($("$python" -V))"
    "$python" -m venv "$venv" || fail "$python could not make $venv (its message is above)"
}

digest() { cat "$root/pyproject.toml" "$root/setup.py" | sha256sum | cut -d' ' -f1; }

# The extras named now and those installed before, without repeats: sets up for the tests and the quickstart add up.
all_extras() {
    { [ ! -f "$stamp" ] || sed -n 2p "$stamp"; } | cat - <(echo "$@") | tr ' ' '\n' | sed '/^$/d' | sort -u | paste -sd' '
}

installed() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest)"$'\n'"$1" ] && usable "$venv/bin/python"; }

install_package() {
    local extras="$1" new_stamp bracketed="${1:+[${1// /,}]}"
    new_stamp="$(digest)"$'\n'"$extras"
    rm -f "$stamp"
    say "installing megatron-mixcpt$bracketed and its dependencies (torch alone is a download of up to 3 GB the first time)"
    "$venv/bin/python" -m pip install --disable-pip-version-check --editable "$root$bracketed" ||
        fail "pip could not install the dependencies (its message is above); correct the cause and run this again: finished" \
            "downloads are kept. PIP_INDEX_URL and pip's other settings choose where it looks"
    printf '%s\n' "$new_stamp" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done in ${SECONDS} s"
}

# Held until this script ends, however it ends. Where flock is missing or the file system has no locks, continue without.
exec 9<"$root/pyproject.toml"
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "waiting for another set-up of $root"
    flock 9 || true
fi

extras="$(all_extras "$@")"
if ! installed "$extras"; then
    make_venv
    install_package "$extras"
fi
