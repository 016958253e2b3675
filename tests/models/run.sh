#!/bin/sh
# Run the tests that need the extra `models`, in .venv-models.
# Several gigabytes, less where PIP_FIND_LINKS (or UV_FIND_LINKS) offers torch for the processor alone.
set -eu
cd "$(dirname "$0")/../.."
sh tests/extra_venv.sh .venv-models dev,models
exec .venv-models/bin/python -m pytest -q tests/models "$@"
