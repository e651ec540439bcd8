#!/usr/bin/env bash
# Every test against slime's own code, those that need none of it too:
#
#     scripts/test_slime.sh CHECKOUT [MEGATRON]
#
# CHECKOUT is slime, MEGATRON is Megatron-LM: a work tree, or a bare git directory, of which the commit is taken that our options are
# those of (a work tree is taken as it is). With MEGATRON its own parser reads our command lines; slime's patch is put on a copy.
# PYTEST_ARGS are more arguments for pytest, separated by spaces.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

if explain "$@"; then exit 0; fi
(($# == 1 || $# == 2)) || die "one or two checkouts are wanted" "scripts/test_slime.sh CHECKOUT [MEGATRON]"
make_venv laptop,local,dev
python=.venv/bin/python
trees=$(mktemp -d)
trap 'rm -rf "$trees"' EXIT

commit_of() { "$python" -c 'import json, sys; print(json.load(open("tau2rl/slime/options.json"))["versions"][sys.argv[1]])' "$1"; }

# tree SOURCE NAME COMMIT: a work tree of its own for a bare git directory; prints where it is
tree() {
    if [[ -e $1/HEAD && ! -e $1/.git ]]; then
        mkdir "$trees/$2"
        git --git-dir "$1" archive "$3" | tar x -C "$trees/$2"
        printf '%s\n' "$trees/$2"
    else
        (cd "$1" && pwd)
    fi
}

SLIME_CHECKOUT=$(tree "$1" slime "$(commit_of slime)")
export SLIME_CHECKOUT
[[ -f $SLIME_CHECKOUT/train.py ]] || die "no checkout of slime in $SLIME_CHECKOUT"
say "slime: $SLIME_CHECKOUT"
if [[ -n ${2:-} ]]; then
    MEGATRON_CHECKOUT=$(tree "$2" megatron "$(sed -n 's/^ARG MEGATRON_COMMIT=//p' "$SLIME_CHECKOUT/docker/Dockerfile")")
    export MEGATRON_CHECKOUT
    if [[ $MEGATRON_CHECKOUT == "$trees"/* ]]; then
        (cd "$MEGATRON_CHECKOUT" && git apply "$SLIME_CHECKOUT/docker/patch/latest/megatron.patch")
    fi
    say "Megatron-LM: $MEGATRON_CHECKOUT"
fi

export OMP_NUM_THREADS=1 LITELLM_LOCAL_MODEL_COST_MAP=True RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1
# shellcheck disable=SC2086
"$python" -m pytest -q -p no:warnings tests/unit/slime tests/contract/test_slime_*.py tests/unit/cli/test_convert.py \
    tests/golden/test_argv.py tests/e2e/test_slime_job.py tau2rl/slime ${PYTEST_ARGS:-}
