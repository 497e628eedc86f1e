#!/usr/bin/env bash
# Set up .venv with the development requirements, then lint, check the format and run all tests.
# Arguments are passed on to pytest: ./bin/test.sh -k recipe
set -euo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# \{0,1\}//p' bin/test.sh && exit ;; esac
source bin/setup.sh
setup_venv requirements-dev.txt requirements.txt
./tests/helpers/install_clients.sh

ruff check .
ruff format --check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
