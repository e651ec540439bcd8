#!/usr/bin/env bash
# Reinforcement learning as a Ray job on this machine: a checkpoint in, a better one out. Options go to `tau2rl grpo`,
# --help too. Paths are meant from the repository's root.
#
#   ./scripts/grpo.sh -c configs/laptop/grpo.yaml
#   ./scripts/grpo.sh --model outputs/sft/default/checkpoints/final --domains retail --user-model scripted --device cuda
#   ./scripts/grpo.sh -c outputs/grpo/default/config.json --resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then
    [ ! -x .venv/bin/tau2rl ] || exec .venv/bin/tau2rl grpo --help
    exit 0
fi
make_venv laptop,local
exec .venv/bin/tau2rl grpo "$@"
