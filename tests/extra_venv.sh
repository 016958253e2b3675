#!/bin/sh
# Make the environment FOLDER with what .venv has and the extras EXTRAS: sh tests/extra_venv.sh FOLDER EXTRAS.
# It is made anew only where pyproject.toml, the lock or the Python changed.
set -eu
cd "$(dirname "$0")/.."
folder=$1 extras=$2

fail() { echo "error: $1" >&2; exit 1; }
stamp=$folder/.made-from
content="$(cat pyproject.toml requirements.lock | cksum) $extras $(.venv/bin/python --version) $(pwd)"
[ "$(cat "$stamp" 2>/dev/null || true)" != "$content" ] || exit 0
rm -rf "$folder"
echo "setting up $folder ($extras)"
if command -v uv >/dev/null 2>&1; then
    [ -n "${UV_FIND_LINKS:-}" ] || [ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS="$PIP_FIND_LINKS"
    uv venv --quiet --python .venv/bin/python "$folder" || fail "uv venv failed"
    install="uv pip install --quiet --python $folder/bin/python"
    $install --require-hashes -r requirements.lock || fail "requirements.lock could not be installed"
else
    .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null || fail "no pip in .venv"
    .venv/bin/python -m venv --without-pip "$folder" || fail "python -m venv failed; on Debian install python3-venv"
    install="env PIP_DISABLE_PIP_VERSION_CHECK=1 $folder/bin/python -m pip install --quiet"
    # What .venv has is read from there; pip installs beside it what is missing, or wanted in another version.
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    .venv/bin/python -c "$packages" >"$("$folder/bin/python" -c "$packages")/what_venv_has.pth"
fi
$install --no-build-isolation -e ".[$extras]" || fail "the extras $extras could not be installed"
echo "$content" >"$stamp"
