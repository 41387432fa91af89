#!/usr/bin/env bash
# Lint, types and tests, as CI runs them. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes of one thread each: nets this small gain nothing from more threads.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --quiet --durations=10 --numprocesses=2 --dist=worksteal "$@"
