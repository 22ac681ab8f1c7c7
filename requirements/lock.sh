#!/usr/bin/env bash
# Compiles the lock files from pyproject.toml. Versions already locked stay unless pyproject.toml rules them out;
# `requirements/lock.sh --upgrade` takes the newest. dev.txt comes first and holds everything: the others are parts of it
# at the same versions. lowest.txt has the lowest version of each direct dependency that pyproject.toml allows.
# bench.txt stands alone: some rivals hold pandas at an older version.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
[ -x "$uv" ] || .venv/bin/python -m pip install --quiet --requirement requirements/uv.txt

compile() { # OUTPUT ARGUMENTS...
    local output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make lock" --output-file "requirements/$output" "$@"
}

compile dev.txt "$@" pyproject.toml --all-extras --group dev
compile demo.txt "$@" pyproject.toml --extra demo --group build --constraints requirements/dev.txt
compile host.txt "$@" pyproject.toml --constraints requirements/dev.txt
compile lowest.txt --upgrade pyproject.toml --all-extras --group test --resolution lowest-direct
compile bench.txt "$@" pyproject.toml --extra demo --group build --group bench
compile uv.txt "$@" requirements/uv.in
