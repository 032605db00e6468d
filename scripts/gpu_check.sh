#!/bin/sh
# Check this machine's GPU: captions equal to the CPU's, speed against the card's limits, and a short training on one
# GPU and on all. Writes everything to one file:
#   scripts/gpu_check.sh [RESULTS]        default: gpu_check.md
# Without a GPU it says so and runs the same on the CPU, in small. PYTHON=... names another Python than .venv's.
set -u
cd "$(dirname "$0")/.." || exit 2
results=${1:-gpu_check.md}
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

section() {  # title, command...
    printf '\n## %s\n\n' "$1" >> "$results"
    shift
    start=$(date +%s)
    "$@" >> "$results" 2>&1 || { failed=1; printf '\nFAILED\n' >> "$results"; }
    printf '\n%s s\n' "$(($(date +%s) - start))" >> "$results"
}

train() {  # processes, folder
    "$python" -m captioner train --config shapes -o "$2" --set "data.root=$work/shapes" --set "training.epochs=$epochs" \
        --set "training.trainer.accelerator=$accelerator" --set "training.trainer.devices=$1" \
        --set "training.trainer.precision=$precision"
}

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') || exit 2
printf '# GPU check, %s\n' "$(date -u +%Y-%m-%d)" > "$results"
if [ "$gpus" -gt 0 ]; then
    accelerator=gpu precision=bf16-mixed epochs=10 drawn=400
    section "Machine" nvidia-smi
else
    echo "no GPU found: running the same on the CPU, in small" >&2
    printf '\nThere is no GPU in this machine: this is the CPU, in small.\n' >> "$results"
    accelerator=cpu precision=32-true epochs=1 drawn=24 gpus=1
fi
section "Captions and speed" "$python" -m benchmarks.gpu
section "Data for training" "$python" scripts/draw_shapes.py --output "$work/shapes" --images "$drawn"
section "Training, one process" train 1 "$work/one"
if [ "$gpus" -gt 1 ]; then
    section "Training, $gpus processes" train "$gpus" "$work/all"
fi
echo "$results"
exit "$failed"
