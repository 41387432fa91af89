#!/usr/bin/env bash
# SimCLR against SimCLR + GH on long-tailed scanned digits, CPU only, nothing to download.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/sslgh run recipes/digits-lt/simclr.yaml recipes/digits-lt/simclr-gh.yaml "$@"
