#!/usr/bin/env bash
# A newcomer's first commands in an empty container: clone, `make demo`, `make test`, on
# debian:bookworm-slim with only git, make, python3-venv, python3-dev and g++. Tests the last commit,
# not the work tree.
#
#   deploy/docker/fresh-test.sh [TARGET ...]     defaults: demo test
#
# Environment: HEARTH_TESTDATA, a folder of test data that the container may read; FRESH_IMAGE, another
# image of Debian or Ubuntu; FRESH_RUN_OPTIONS, more options of `docker run` (a network, a mirror's
# settings, certificates).
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
image=${FRESH_IMAGE:-debian:bookworm-slim}
targets=("$@")
(($#)) || targets=(demo test)

options=(--rm --volume "$top:/source:ro")
if [[ -n ${HEARTH_TESTDATA:-} ]]; then
  options+=(--volume "$(realpath "$HEARTH_TESTDATA"):/testdata:ro" --env HEARTH_TESTDATA=/testdata)
fi
read -r -a more <<<"${FRESH_RUN_OPTIONS:-}"

# shellcheck disable=SC2016
docker run "${options[@]}" "${more[@]}" "$image" bash -euo pipefail -c '
  start=$SECONDS
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    git make python3-venv python3-dev g++ >/dev/null
  echo "== system packages: $((SECONDS - start)) s"
  git config --global --add safe.directory "*"
  git clone -q /source /home/hearth
  cd /home/hearth
  git log -1 --format="== commit %h %s"
  for target in "$@"; do
    start=$SECONDS
    echo "== make $target"
    make "$target"
    echo "== make $target: $((SECONDS - start)) s"
  done
' fresh "${targets[@]}"
