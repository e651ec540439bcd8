#!/usr/bin/env bash
# Builds the image tau2rl:latest on a slime image that is pinned by its digest. SLIME_IMAGE=slimerl/slime:TAG@sha256:DIGEST names it;
# without one the digest of the tag in the Dockerfile is looked up and shown, for the next time.
# More arguments go to docker build: docker/build.sh --tag tau2rl:mine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' docker/build.sh && exit ;; esac

image=${SLIME_IMAGE:-$(sed -n 's/^ARG SLIME_IMAGE=//p' docker/Dockerfile)}
if [[ $image != *@sha256:* ]]; then
    digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
    [[ $digest == sha256:* ]] || { echo "error: no digest for $image" >&2; exit 1; }
    image=$image@$digest
fi
echo "building on $image" >&2
DOCKER_BUILDKIT=1 exec docker build --file docker/Dockerfile --build-arg "SLIME_IMAGE=$image" \
    --build-arg "RUN_AS=$(id -u):$(id -g)" --tag tau2rl:latest "$@" .
