#!/usr/bin/env bash
# Reinforcement learning as a Ray job on this machine; options go to `tau2rl grpo`. Paths are meant from the repository's root.
# ./scripts/grpo.sh --model outputs/sft/default/checkpoints/final --domains retail --device cuda
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

make_venv laptop,local
exec .venv/bin/tau2rl grpo "$@"
