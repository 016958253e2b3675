#!/bin/sh
# Make .venv-peers, which has the extra `peers` besides what .venv has, and measure the peers on the same rounds.
# With BYZFL=1 also the extra `peers-torch`: ByzFL, which needs torch and torchvision (several gigabytes).
set -eu
cd "$(dirname "$0")/../.."

fail() { echo "error: $1" >&2; exit 1; }
extras=dev,peers
[ -z "${BYZFL:-}" ] || extras=dev,peers,peers-torch
stamp=.venv-peers/.made-from
content="$(cat pyproject.toml requirements.lock | cksum) $extras $(.venv/bin/python --version) $(pwd)"
if [ "$(cat $stamp 2>/dev/null || true)" != "$content" ]; then
    rm -rf .venv-peers
    echo "setting up .venv-peers ($extras)"
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python .venv/bin/python .venv-peers || fail "uv venv failed"
        install="uv pip install --quiet --python .venv-peers/bin/python"
    else
        .venv/bin/python -m venv .venv-peers || fail "python -m venv failed; on Debian install python3-venv"
        install="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-peers/bin/python -m pip install --quiet"
    fi
    $install --require-hashes -r requirements.lock || fail "requirements.lock could not be installed"
    $install --no-build-isolation -e ".[$extras]" || fail "the extras $extras could not be installed"
    echo "$content" >$stamp
fi
[ "${1:-}" = test ] && exec .venv-peers/bin/python -m pytest -q tests/peers
exec .venv-peers/bin/python -m tests.peers "$@"
