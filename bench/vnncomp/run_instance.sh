#!/bin/bash
# VNN-COMP: one instance. Called as: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT
# RESULTS_FILE gets the answer in its first line, and after sat the counterexample.
set -euo pipefail
if [ "${1:-}" != v1 ] || [ $# -lt 6 ]; then
    echo "expected: v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT, got '$*'" >&2
    exit 1
fi
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
rm -f -- "$5"
echo "milpver: '$3', '$4' of category '$2', $6 s"
threads="$(nproc 2>/dev/null || echo 1)"
code=0
"${MILPVER_PYTHON:-$here/.venv/bin/python}" -m milpver verify "$3" "$4" --timeout "$6" --threads "$threads" \
    --result "$5" || code=$?
# An error is an answer of its own; the file always has one.
if [ ! -s "$5" ]; then echo error > "$5"; fi
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ]; then exit "$code"; fi
