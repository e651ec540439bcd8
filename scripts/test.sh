#!/usr/bin/env bash
# All gates, then all tests that need no GPU and no patience. Arguments go to pytest: ./scripts/test.sh -k config
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then exit 0; fi
make_venv laptop,local,dev
bin=.venv/bin

export OMP_NUM_THREADS=1 LITELLM_LOCAL_MODEL_COST_MAP=True RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1
export PYRIGHT_PYTHON_IGNORE_WARNINGS=1

say "ruff"
"$bin/ruff" check --quiet .
"$bin/ruff" format --quiet --check . || die "some files are not formatted" "$bin/ruff format ."
say "import-linter"
"$bin/lint-imports" --no-logo
say "pyright"
"$bin/pyright"
say "pytest"
exec "$bin/python" -m pytest -n 2 --dist loadscope "$@"
