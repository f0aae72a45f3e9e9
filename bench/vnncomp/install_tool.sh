#!/bin/bash
# VNN-COMP: install milpver into .venv of this checkout. Called as: install_tool.sh v1
set -euo pipefail
if [ "${1:-}" != v1 ]; then
    echo "expected the version v1 as first argument, got '${1:-}'" >&2
    exit 1
fi
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3}"
"$python" -m venv .venv
.venv/bin/python -m pip install -c constraints.txt '.[vnnlib]'
.venv/bin/milpver --version
