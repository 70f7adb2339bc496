#!/usr/bin/env bash
# Trains for a number of minutes on a machine that has PyTorch and Lightning and no network, from the last state of a run:
#
#     bench/train_gpu.sh RECIPE MINUTES OUT [options of slimse train]
#
# wheels/*.whl      what the machine lacks: soundfile, cffi, pycparser, soxr
# parts/part-*.zip  recordings, from `python -m bench.travel parts`; may come in several calls
# state/state-*     what an earlier call left in OUT; without it the run begins with the recipe's weights
#
# OUT/state-* is replaced every minute and at the end, OUT/train.log is the output. If a step does not fit the memory, or
# the Triton kernels fail, it tries half the batch, then plain PyTorch, from the last state. PYTHON names another
# interpreter than python3, WORK another folder than slimse-training beside other temporary files, DEVICE=cpu rehearses.
set -euo pipefail
recipe=${1:?usage: bench/train_gpu.sh RECIPE MINUTES OUT [options of slimse train]}
minutes=${2:?expected minutes}
out=$(realpath -m "${3:?expected a folder for the results}")
shift 3
start=$(date +%s)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} device=${DEVICE:-cuda}
work=${WORK:-$("$python" -c 'import tempfile; print(tempfile.gettempdir())')/slimse-training}
export PYTHONUNBUFFERED=1
mkdir -p "$out" "$work/run"
say() { echo "$(($(date +%s) - start)) s  $*" | tee -a "$work/run/train.log"; }
left() { "$python" -c "print(round($minutes - ($(date +%s) - $start) / 60, 2))"; }

for wheel in wheels/*.whl; do
    [ -e "$wheel" ] && "$python" -m pip install --quiet --no-index --no-deps "$wheel"
done
if ! "$python" -c 'import slimse.kernels' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps -e .
fi
"$python" -m bench.travel unpack parts "$work/data"
if compgen -G 'state/state-*' >/dev/null && [ ! -e "$work/run/last.ckpt" ]; then
    "$python" -m bench.travel unite state "$work/run"
fi
valid=()
[ -d "$work/data/valid/noisy" ] && valid=(--valid "$work/data/valid")
say "ready: $("$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")')"

keep() { # Only whole checkpoints: a half-written one fails to load, and the pieces before it stay.
    [ -e "$work/run/last.ckpt" ] && "$python" -m bench.travel pack "$work/run" "$out" >/dev/null 2>&1 || true
    cp "$work/run/train.log" "$out/train.log"
}
while sleep 60; do keep; done &
keeper=$!
trap 'kill $keeper 2>/dev/null || true; keep' EXIT

train() {
    "$python" -m slimse train "$recipe" --data "$work/data/train" -o "$work/run" --device "$device" \
        --minutes "$(left)" "${valid[@]}" "$@" 2>&1 | tee -a "$work/run/train.log"
}
half=$("$python" -c "from slimse.training.config import TrainConfig as C; c = C.read('$recipe'); print(max(c.batch // 2, c.narrow_batch))")
train "$@" || { say "again with a batch of $half" && train "$@" --batch "$half"; } ||
    { say "again without Triton" && train "$@" --batch "$half" --backend reference; }
say "done"
