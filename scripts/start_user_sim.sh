#!/usr/bin/env bash
# A user simulator of one's own: an SGLang server with an OpenAI-compatible API and tool calls (telecom's simulated users have tools).
#
#     scripts/start_user_sim.sh MODEL_DIR [FLAG...]      start it and wait until it is ready; flags go to SGLang
#     scripts/start_user_sim.sh stop | status
#
# GPUS=6,7 (default 7)  PORT=30001  CONTEXT=32768  MEMORY=0.85  PARSER=qwen25 (also Qwen3; llama3, mistral, ...)  SERVED=user_sim
# WAIT=900 seconds      PYTHON=python3
# Then: --user-model openai/user_sim --set user.api_base=http://127.0.0.1:30001/v1
# A training can serve the user simulator itself (`slime.user.gpus`); this one is for evaluations, and for a second machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_serve.sh

port=${PORT:-30001}
gpus=${GPUS:-7}

case ${1:-} in
    stop) stop_server user_sim ;;
    status) server_status user_sim "$port" ;;
    "" | -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0" ;;
    *)
        model=$1
        shift
        [ -d "$model" ] || die "no model in \`$model\`" "a directory in Hugging Face's layout"
        copies=$(printf '%s' "$gpus" | awk -F, '{ print NF }')
        export CUDA_VISIBLE_DEVICES=$gpus
        start_server user_sim "$port" "${WAIT:-900}" "$python" -m sglang.launch_server --model-path "$model" \
            --served-model-name "${SERVED:-user_sim}" --host 127.0.0.1 --port "$port" --data-parallel-size "$copies" \
            --context-length "${CONTEXT:-32768}" --mem-fraction-static "${MEMORY:-0.85}" --tool-call-parser "${PARSER:-qwen25}" "$@"
        ;;
esac
