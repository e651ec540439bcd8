#!/usr/bin/env bash
# From a fresh clone to a result: the reference actions of every test task of tau2-bench, as a Ray job on this machine.
# Options go to `tau2rl eval`: ./scripts/quickstart.sh --domains retail --limit 5
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

make_venv laptop
# A run folder of its own each time, so that it can be called again; a later `--name` or `--output` wins.
exec .venv/bin/tau2rl eval -c configs/eval/gold.yaml --name "quickstart-$(date +%Y%m%d-%H%M%S)" "$@"
