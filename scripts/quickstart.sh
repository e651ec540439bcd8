#!/usr/bin/env bash
# From a fresh clone to two results, in Ray jobs on this machine:
#
#   ./scripts/quickstart.sh                   both of these, one after the other
#   ./scripts/quickstart.sh gold [OPTIONS]    the reference actions of every test task of tau2-bench: is the installation right?
#   ./scripts/quickstart.sh train [OPTIONS]   a tiny model learns: seed -> sft -> rft-filter -> sft -> grpo -> eval
#
# The options of `gold` are those of `tau2rl eval` (--domains retail --limit 5), those of `train` those of `tau2rl run`
# (--limit 1: a smoke run). Options without a word before them go to `gold`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/_env.sh

# A run folder of its own each time, so that it can be called again; a later `--name` or `--output` wins.
name=quickstart-$(date +%Y%m%d-%H%M%S)
gold=(.venv/bin/tau2rl eval -c configs/eval/gold.yaml --name "$name")
train=(.venv/bin/tau2rl run -c configs/laptop/pipeline.yaml --name "$name")

learns="a model learns from nothing; 5 to 13 minutes on two cores (measured), behind the installation of torch"

case "${1:-both}" in
both)
    say "1 of 2: 100 real tasks, played by their reference actions; under a minute on two cores (measured), behind the installation"
    make_venv laptop
    "${gold[@]}"
    say ""
    say "2 of 2: $learns"
    say "        (Ctrl-C keeps what is done, and says how to go on with it)"
    make_venv laptop,local
    exec "${train[@]}"
    ;;
train)
    say "$learns"
    make_venv laptop,local
    exec "${train[@]}" "${@:2}"
    ;;
gold)
    make_venv laptop
    exec "${gold[@]}" "${@:2}"
    ;;
-h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' scripts/quickstart.sh ;;
-*)
    make_venv laptop
    exec "${gold[@]}" "$@"
    ;;
*) die "no such word \`$1\`" "\`gold\`, \`train\`, or nothing for both; ./scripts/quickstart.sh --help" ;;
esac
