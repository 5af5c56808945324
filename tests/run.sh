#!/usr/bin/env bash
# Passes the tests, from a bare checkout on: makes .venv if need be, then runs pytest.
# Arguments go to pytest. Tests of one file share a process, and with it their dear fixtures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/environment.sh

install_environment "[dev]"
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
