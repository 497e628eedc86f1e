#!/usr/bin/env bash
# The published recipe on the real base and data, for the owner of a GPU: train, score beside the published model,
# export. An interrupted run is resumed; a finished one is not trained again.
#
#   ./bin/reproduce.sh --bf16             flags are passed on to the training script; without: float32, as published
#   ./bin/reproduce.sh --recommended      the recommended recipe too, compared with both; only as the first flag
#
# Downloads the base (746 MB) and the data (160 MB), needs 12 GB of disk and 16 GB of memory; with less memory,
# --nli_mini_batch_size 32 gives the same result. Estimated, not measured: an hour in float32 on one data-center GPU.
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case "${1:-}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;; esac
recipes=(multi_task) runs=()
if [ "${1:-}" = --recommended ]; then recipes+=(recommended) && shift; fi
here=$PWD && cd "$root" && source bin/setup.sh && setup_venv requirements.txt && cd "$here"
# 1. Train; each run is in $PWD/output/reproduce/RECIPE
for recipe in "${recipes[@]}"; do
    output=output/reproduce/$recipe
    run=$(ls -d "$output"/*/args.json 2>/dev/null | tail -n 1 || true)
    python "$root/training_$recipe.py" "$@" --output_dir "$output" ${run:+--resume "${run%/args.json}"}
    runs=("$(dirname "$(ls -d "$output"/*/results.json | tail -n 1)")" ${runs[@]+"${runs[@]}"})
done
data=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["args"]["dataset_path"])' "${runs[0]}/args.json")
# 2. Score beside the published model, which is downloaded; then export
python "$root/bin/benchmark.py" --model_name_or_path "${runs[@]}" upskyy/kf-deberta-multitask --sts_dataset_path "$data/KorSTS" \
    --reproduces upskyy/kf-deberta-multitask --output output/reproduce/results.json
python "$root/bin/export_onnx.py" --model_name_or_path "${runs[0]}" --output_dir output/reproduce/onnx --quantize \
    --sts_dataset_path "$data/KorSTS"
