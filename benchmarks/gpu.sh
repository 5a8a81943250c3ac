#!/usr/bin/env bash
# bash benchmarks/gpu.sh [CHECK...] [--data DIR] [--decoder DIR] [--results DIR]: what only a GPU can show, in under ten
# minutes and without a network. benchmarks/gpu/gpu_checks.py says what the checks are. PYTHON is one with torch,
# transformers, peft and safetensors; .venv/bin/python, else python3, if it is not set.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout --signal=TERM 590 "$python" benchmarks/gpu/gpu_checks.py "$@"
