#!/usr/bin/env bash
# Passes the tests, from a bare checkout on: makes .venv if need be, then runs pytest.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/environment.sh

install_environment "[dev]"
exec .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"
