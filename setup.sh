#!/bin/sh
# Make .venv from requirements.lock: with uv where it is installed, else with venv and pip.
# Does nothing when neither the lock, nor pyproject.toml, nor the asked Python, nor the place of this folder has changed.
set -eu
cd "$(dirname "$0")"

fail() { echo "error: $1" >&2; exit 1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

asked=${PYTHON:-}
python=${PYTHON:-python3}
stamp=.venv/.made-from
content="$(cat pyproject.toml requirements.lock | cksum) $(pwd)"
have=$(version_of .venv/bin/python)
version=$have
if [ -z "$have" ] || [ -n "$asked" ]; then
    version=$(version_of "$python")
fi

case $version in
    3.11 | 3.12 | 3.13) ;;
    "") fail "$python cannot be run; install Python 3.11, 3.12 or 3.13, or name one: make setup PYTHON=python3.12" ;;
    *) fail "Python 3.11, 3.12 or 3.13 is needed, $python is $version; name another: make setup PYTHON=python3.12" ;;
esac
if [ "$have" = "$version" ] && [ "$(cat $stamp 2>/dev/null || true)" = "$content" ]; then
    exit 0
fi

# An environment of another Python, or of another place, cannot be mended.
if [ "$have" != "$version" ] || ! grep -qsF "$(pwd)/" .venv/bin/jupyter-book; then
    rm -rf .venv
fi
rm -f $stamp
trap 'rm -f "$stamp"' INT TERM
count=$(grep -c '^[a-z0-9]' requirements.lock)
if command -v uv >/dev/null 2>&1; then
    echo "setting up .venv for Python $version with uv (up to $count packages)"
    if [ ! -d .venv ]; then
        uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" .venv || fail "uv venv failed"
    fi
    uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock || fail "uv could not install requirements.lock"
    uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e . || fail "uv could not install this project"
else
    echo "setting up .venv for Python $version with pip (up to $count packages, about a minute)"
    if [ ! -d .venv ]; then
        "$python" -m venv .venv || fail "$python -m venv failed; on Debian install python3-venv"
    fi
    pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install --quiet"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null || fail "no pip in .venv; remove .venv and try again"
    $pip --require-hashes -r requirements.lock || fail "pip could not install requirements.lock"
    $pip --no-deps --no-build-isolation -e . || fail "pip could not install this project"
fi
echo "$content" >$stamp
