#!/usr/bin/env bash
# Rejection sampling as a Ray job on this machine; options go to `tau2rl rft-filter`. Paths are meant from the repository's root.
# ./scripts/rft.sh -c configs/laptop/rft.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

make_venv laptop,local
exec .venv/bin/tau2rl rft-filter "$@"
