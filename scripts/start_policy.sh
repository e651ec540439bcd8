#!/usr/bin/env bash
# The agent's model for an evaluation: an SGLang server whose `/generate` takes token ids and returns them with log-probabilities.
#
#     scripts/start_policy.sh MODEL_DIR [FLAG...]        start it and wait until it is ready; flags go to SGLang
#     scripts/start_policy.sh stop | status
#
# GPUS=0,1,2,3 (default 0; one copy of the model on each)  PORT=30000  CONTEXT=32768  MEMORY=0.85  SERVED=policy  WAIT=900 seconds
# PYTHON=python3
# Then: --policy sglang --url http://127.0.0.1:30000 --tokenizer MODEL_DIR
# A training starts its own engines; this is for `tau2rl eval`, `seed` and `rft-filter`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_serve.sh

port=${PORT:-30000}
gpus=${GPUS:-0}

case ${1:-} in
    stop) stop_server policy ;;
    status) server_status policy "$port" ;;
    "" | -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0" ;;
    *)
        model=$1
        shift
        [ -d "$model" ] || die "no model in \`$model\`" "a directory in Hugging Face's layout"
        copies=$(printf '%s' "$gpus" | awk -F, '{ print NF }')
        export CUDA_VISIBLE_DEVICES=$gpus
        start_server policy "$port" "${WAIT:-900}" "$python" -m sglang.launch_server --model-path "$model" \
            --served-model-name "${SERVED:-policy}" --host 127.0.0.1 --port "$port" --data-parallel-size "$copies" \
            --context-length "${CONTEXT:-32768}" --mem-fraction-static "${MEMORY:-0.85}" "$@"
        ;;
esac
