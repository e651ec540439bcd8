#!/usr/bin/env bash
# Runs a command (default: a shell) in the image, with all GPUs, as you and not as root:
#
#     docker/run.sh                                    the first call starts the container, later ones enter it
#     docker/run.sh tau2rl grpo -c configs/8xh100/grpo.yaml
#     docker/run.sh --stop                             ends the container and everything in it
#
# This clone is /work in it, MODELS (default ./models) is /models. SECRETS (default .env, 0600, see .env.example) is mounted as a
# file, so that no key is in the container's settings, which `docker inspect` shows, or in a layer of the image.
# What runs is the tau2rl of this clone, for the command and for its jobs alike: they start in /work, where Python finds it first.
# Build the image again where docker/ or the dependencies have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' docker/run.sh && exit ;; esac

image=${IMAGE:-tau2rl:latest}
name=${NAME:-tau2rl}
models=${MODELS:-$PWD/models}
secrets=${SECRETS:-$PWD/.env}

if [[ ${1:-} == --stop ]]; then exec docker stop "$name"; fi

if ! docker container inspect "$name" >/dev/null 2>&1; then
    mkdir -p "$models" outputs
    models=$(cd "$models" && pwd)
    options=(
        --detach --rm --init --name "$name"
        --gpus all                                     # shared memory and locked pages are for NCCL and Ray's object store
        --ipc host --ulimit memlock=-1 --ulimit stack=67108864 --ulimit nofile=1048576:1048576
        --network host                                 # `ray start` of further machines must reach this one
        --user "$(id -u):$(id -g)"
        --volume "$PWD:/work" --volume "$models:/models" --workdir /work
        --env "HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}" --env PYTHONPATH=/work:/root/slime:/root/Megatron-LM
    )
    if [[ -e $secrets ]]; then
        mode=$(stat -c %a "$secrets")
        [[ $mode == 600 || $mode == 400 ]] || { echo "error: others can read $secrets" >&2; echo "hint: chmod 600 $secrets" >&2; exit 2; }
        options+=(--volume "$(realpath "$secrets"):/run/secrets/tau2rl:ro" --env TAU2RL_SECRETS_FILE=/run/secrets/tau2rl)
    fi
    docker run "${options[@]}" "$image" sleep infinity >/dev/null
fi

interactive=(--interactive)
if [[ -t 0 && -t 1 ]]; then interactive+=(--tty); fi
if (($#)); then exec docker exec "${interactive[@]}" "$name" "$@"; fi
exec docker exec "${interactive[@]}" "$name" bash
