#!/bin/bash
# VNN-COMP: before an instance, outside of its time. Called as: prepare_instance.sh v1 CATEGORY ONNX VNNLIB
# Loads the program once, so that it comes from memory later, and checks that both files are there.
set -euo pipefail
if [ "${1:-}" != v1 ] || [ $# -lt 4 ]; then
    echo "expected: v1 CATEGORY ONNX VNNLIB, got '$*'" >&2
    exit 1
fi
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
echo "milpver: preparing '$3' and '$4' of category '$2'"
case "$3" in
    "["*) ;; # a list of (name, file) pairs, as version 2.0 has it
    *) test -r "$3" ;;
esac
test -r "$4"
"${MILPVER_PYTHON:-$here/.venv/bin/python}" -c 'import milpver.counterexample, milpver.search.box, onnxruntime, milpver.onnx_import'
