#!/usr/bin/env bash
# Everything that a GPU is wanted for, on a bare machine, within ten minutes:
#
#     bench/gpu_run.sh OUT [--rehearse] [--few] [--minutes 9.5]
#
# installs this checkout without a network, then runs bench/gpu.py. Results are in OUT/<device> as they come, a short
# table is printed last, and OUT/<device> belongs into bench/results. PYTHON names another interpreter than python3.
set -euo pipefail
start=$(date +%s)
out=$(realpath -m "${1:?usage: bench/gpu_run.sh OUT [--rehearse] [--few] [--minutes M]}")
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
mkdir -p "$out"

if ! "$python" -c 'from importlib.metadata import version; version("slimse")' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps -e .
fi
for wheel in wheels/*.whl; do
    [ -e "$wheel" ] && "$python" -m pip install --quiet --no-index --no-deps "$wheel" || true
done
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # What deterministic mode, which poisons memory in checks, asks for.
echo "$(($(date +%s) - start)) s  installed"
exec "$python" -m bench.gpu --out "$out" "$@"
