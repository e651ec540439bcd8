#!/usr/bin/env bash
# An evaluation as a Ray job on this machine; options go to `tau2rl eval`. Paths are meant from the repository's root.
# ./scripts/eval.sh -c configs/laptop/eval.yaml
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

make_venv laptop,local
exec .venv/bin/tau2rl eval "$@"
