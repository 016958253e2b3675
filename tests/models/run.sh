#!/bin/sh
# Make .venv-models, which has the extra `models` besides what .venv has, and run the tests that need it.
# Several gigabytes, less where PIP_FIND_LINKS (or UV_FIND_LINKS) offers torch for the processor alone.
set -eu
cd "$(dirname "$0")/../.."

fail() { echo "error: $1" >&2; exit 1; }
stamp=.venv-models/.made-from
content="$(cat pyproject.toml requirements.lock | cksum) $(.venv/bin/python --version) $(pwd)"
if [ "$(cat $stamp 2>/dev/null || true)" != "$content" ]; then
    rm -rf .venv-models
    echo "setting up .venv-models (several gigabytes)"
    if command -v uv >/dev/null 2>&1; then
        [ -n "${UV_FIND_LINKS:-}" ] || [ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="$PIP_FIND_LINKS"
        uv venv --quiet --python .venv/bin/python .venv-models || fail "uv venv failed"
        install="uv pip install --quiet --python .venv-models/bin/python"
    else
        .venv/bin/python -m venv .venv-models || fail "python -m venv failed; on Debian install python3-venv"
        install="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-models/bin/python -m pip install --quiet"
    fi
    $install --require-hashes -r requirements.lock || fail "requirements.lock could not be installed"
    $install --no-build-isolation -e '.[dev,models]' || fail "the extra models could not be installed"
    echo "$content" >$stamp
fi
exec .venv-models/bin/python -m pytest -q tests/models "$@"
