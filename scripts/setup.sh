#!/usr/bin/env bash
# Make .venv with sslgh and its test tools, once. Default builds of torch and faiss-gpu also run on a
# CPU: about 7 GB and 2 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.sslgh-installed
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  python=$(command -v python3.11 || command -v python3)
  [ -d .venv ] || "$python" -m venv .venv
  echo "installing into .venv (about 7 GB, 2 minutes)" >&2
  .venv/bin/python -m pip install --quiet -e '.[test]'
  touch "$stamp"
fi
