#!/usr/bin/env bash
# The published recipe on the real base and data, for the owner of a GPU: fetch, train, score, compare, export.
# A run that was stopped goes on where it stopped; a finished one is not trained again.
#
#   ./bin/reproduce.sh             float32, as published
#   ./bin/reproduce.sh --bf16      flags go to training_multi_task.py
#   ./bin/reproduce.sh --best      the recommended recipe too (./bin/train.sh best), scored beside both; flags go to both
#
# Needs the internet for the base model and the data set (160 MB), and a GPU. Estimated from operation counts, not
# measured with the real base: under an hour and about 16 GB of GPU memory in float32 on a current data-center GPU;
# 8 GB of disk for checkpoints. Smaller memory: --nli_mini_batch_size 32 (the same result).
set -euo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,12s/^# \{0,1\}//p' bin/reproduce.sh && exit ;; esac
source bin/setup.sh
best= flags=() output=output/reproduce
for flag in "$@"; do if [ "$flag" = --best ]; then best=1; else flags+=("$flag"); fi; done
set -- ${flags[@]+"${flags[@]}"}
sort_flags "$@"
setup_venv requirements.txt

# 1. Train; the data set is fetched and verified where it is absent
train_once "$output" training_multi_task.py "$@"
published=$run
if [ "$best" ]; then
    ./bin/train.sh best "$@"
    run=output/best/model
fi

# 2. Score it beside the published model, which is downloaded: by how much it is better, or whether the row is reached
data=($trust ${dataset:+--sts_dataset_path "$dataset/KorSTS"})
if [ "$best" ]; then
    python bin/benchmark.py --model_name_or_path "$run" "$published" upskyy/kf-deberta-multitask \
        ${data[@]+"${data[@]}"} --output "$output/results_best.json"
else
    python bin/benchmark.py --model_name_or_path "$run" upskyy/kf-deberta-multitask \
        ${data[@]+"${data[@]}"} --reproduces upskyy/kf-deberta-multitask --output "$output/results.json"
fi

# 3. Export
python bin/export_onnx.py --model_name_or_path "$run" --output_dir "$output/onnx${best:+_best}" --quantize \
    ${data[@]+"${data[@]}"}
echo "== done: $run, $output/results${best:+_best}.json, $output/onnx${best:+_best}"
