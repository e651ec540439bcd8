#!/usr/bin/env bash
# Supervised training as a Ray job on this machine; options go to `tau2rl sft`. Paths are meant from the repository's root.
# ./scripts/sft.sh --model CHECKPOINT --data outputs/seed/default/rows.jsonl --device cuda
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

make_venv laptop,local
exec .venv/bin/tau2rl sft "$@"
