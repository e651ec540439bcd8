#!/usr/bin/env bash
# Supervised training as a Ray job on this machine: rows in, a checkpoint out. Options go to `tau2rl sft`, --help too.
# Paths are meant from the repository's root.
#
#   ./scripts/sft.sh -c configs/laptop/sft.yaml
#   ./scripts/sft.sh --model CHECKPOINT --data outputs/seed/default/rows.jsonl --device cuda
#   ./scripts/sft.sh -c outputs/sft/default/config.json --resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then
    [ ! -x .venv/bin/tau2rl ] || exec .venv/bin/tau2rl sft --help
    exit 0
fi
make_venv laptop,local
exec .venv/bin/tau2rl sft "$@"
