#!/usr/bin/env bash
# An evaluation as a Ray job on this machine: pass@k and pass^k with intervals and floors. Options go to `tau2rl eval`,
# --help too. Paths are meant from the repository's root.
#
#   ./scripts/eval.sh -c configs/laptop/eval.yaml
#   ./scripts/eval.sh -c configs/laptop/eval.yaml --set policy.checkpoint=outputs/sft/laptop/checkpoints/final --name sft
#   ./scripts/eval.sh -c configs/eval/sglang.yaml --tokenizer CHECKPOINT
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then
    [ ! -x .venv/bin/tau2rl ] || exec .venv/bin/tau2rl eval --help
    exit 0
fi
make_venv laptop,local
exec .venv/bin/tau2rl eval "$@"
