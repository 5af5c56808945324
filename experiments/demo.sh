#!/usr/bin/env bash
# Runs the main job on the embedded model, from a bare checkout on: makes .venv if need be, then
# sweeps the cache budget and writes a report. Arguments go to experiments.run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/environment.sh

install_environment
exec .venv/bin/python -m experiments.run --config=configs/embedded_cache_sweep.py "$@"
