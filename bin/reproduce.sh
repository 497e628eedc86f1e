#!/usr/bin/env bash
# The published recipe on the real base and data, for the owner of a GPU: fetch, train, score, compare, export.
# A run that was stopped goes on where it stopped; a finished one is not trained again.
#
#   ./bin/reproduce.sh             float32, as published
#   ./bin/reproduce.sh --bf16      flags go to training_multi_task.py
#
# Needs the internet for the base model and the data set (160 MB), and a GPU. Estimated from operation counts, not
# measured with the real base: under an hour and about 16 GB of GPU memory in float32 on a current data-center GPU;
# 8 GB of disk for checkpoints. Smaller memory: --nli_mini_batch_size 32 (the same result).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,11s/^# \{0,1\}//p' bin/reproduce.sh && exit ;; esac
source bin/setup.sh
setup_venv requirements.txt

output=output/reproduce
newest() { (ls -d "$output"/kor_multi_*/ 2>/dev/null || true) | sort | tail -n 1; }
status() { python -c 'import json, sys; print(json.load(open(sys.argv[1] + "training_arguments.json"))["status"])' "$1"; }

# 1. Train; the data set is fetched and verified where it is absent
run=$(newest)
if [ -z "$run" ]; then
    python training_multi_task.py --output_dir "$output" "$@"
else
    state=$(status "$run") || { echo "error: $run holds no readable run; delete it" >&2; exit 2; }
    case "$state" in
        finished) echo "== $run is trained; delete it to train again" ;;
        *) python training_multi_task.py --output_dir "$output" "$@" --resume "$run" ;;
    esac
fi
run=$(newest)

# 2. Export
python bin/export_onnx.py --model_name_or_path "$run" --output_dir "$output/onnx" --quantize

# 3. Score it beside the published model, which is downloaded, and say whether the published row is reached
python bin/benchmark.py --model_name_or_path "$run" upskyy/kf-deberta-multitask \
    --reproduces upskyy/kf-deberta-multitask --output "$output/results.json"
echo "== done: $run, $output/results.json, $output/onnx"
