#!/bin/sh
# Measure the peers on the same rounds, in .venv-peers; with the argument `test`, run their tests instead.
# With BYZFL=1 also the extra `peers-torch`: ByzFL, which needs torch and torchvision (several gigabytes).
set -eu
cd "$(dirname "$0")/../.."
sh tests/extra_venv.sh .venv-peers "dev,peers${BYZFL:+,peers-torch}"
[ "${1:-}" = test ] && exec .venv-peers/bin/python -m pytest -q tests/peers
exec .venv-peers/bin/python -m tests.peers "$@"
