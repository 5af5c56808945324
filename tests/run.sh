#!/usr/bin/env bash
# Passes the tests, from a bare checkout on: makes .venv if need be, then runs pytest.
# Arguments go to pytest. Tests of one file share a process, and with it their dear fixtures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/environment.sh

install_environment "[dev]"
# Most of the time is compiling, much of it of what another process has compiled already.
JAX_COMPILATION_CACHE_DIR="$(mktemp -d)"
trap 'rm -rf "$JAX_COMPILATION_CACHE_DIR"' EXIT
export JAX_COMPILATION_CACHE_DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.05
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"
