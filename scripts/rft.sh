#!/usr/bin/env bash
# Rejection sampling as a Ray job on this machine: a checkpoint in, the rows of its successes out. Options go to
# `tau2rl rft-filter`, --help too. Paths are meant from the repository's root.
#
#   ./scripts/rft.sh -c configs/laptop/rft.yaml
#   ./scripts/rft.sh --policy local --set policy.checkpoint=CHECKPOINT --tokenizer CHECKPOINT --domains retail --user-model scripted
#   ./scripts/rft.sh --from outputs/eval/train-1 --per-task 1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then
    [ ! -x .venv/bin/tau2rl ] || exec .venv/bin/tau2rl rft-filter --help
    exit 0
fi
make_venv laptop,local
exec .venv/bin/tau2rl rft-filter "$@"
