#!/usr/bin/env bash
# From a fresh machine to a trained, scored and exported model on the small corpus in sample/: no hub, no data set.
# Needs Python 3.11 to 3.13 and, the first time, PyPI. A minute on 2 cores after that; output/demo is replaced.
set -euo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,3s/^# \{0,1\}//p' bin/demo.sh && exit ;; esac
source bin/setup.sh && setup_venv requirements.txt
# one thread: for a model this small, more threads only wait for each other
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
demo=output/demo
rm -rf "$demo" && mkdir -p "$demo"

echo "== 1/5 a small DebertaV2 base with random weights"
python sample/build_base.py --output_dir "$demo/sample-base"

echo "== 2/5 multi-task training on sample/"
python training_multi_task.py --model_name_or_path "$demo/sample-base" --dataset_path sample --output_dir "$demo" \
    --nli_batch_size 16 --num_epochs 10 --learning_rate 2e-3
run=$(ls -d "$demo"/kor_multi_*)

echo "== 3/5 benchmark: untrained base and trained model on sample/KorSTS/sts-test.tsv"
python bin/benchmark.py --model_name_or_path "$demo/sample-base" "$run" --sts_dataset_path sample/KorSTS \
    --bootstrap 2000 --output "$demo/results.json" | tee "$demo/results.md"

echo "== 4/5 export to ONNX"
python bin/export_onnx.py --model_name_or_path "$run" --output_dir "$demo/onnx" --quantize --sts_dataset_path sample/KorSTS

echo "== 5/5 search with the exported graph"
graph=$(ls "$demo"/onnx/*.onnx | grep -v -- -int8)
python bin/search.py --onnx "$graph" "은행에서 대출을 상환하는 고객이 있다." --top_k 3

python - "$demo" <<'PYTHON'
import json, sys

base, trained = json.load(open(f"{sys.argv[1]}/results.json", encoding="utf-8"))
gain, low, high = (100 * trained[f"cosine_spearman_difference{end}"] for end in ("", "_low", "_high"))
print(f"""
== Summary: sample/KorSTS/sts-test.tsv, cosine Spearman x100
   untrained base {100 * base["cosine_spearman"]:.2f} -> trained {100 * trained["cosine_spearman"]:.2f}
   gain {gain:.2f}, paired bootstrap 95% interval {low:.2f} to {high:.2f}
   A toy corpus: these figures say nothing about the real model.

   {sys.argv[1]} has the model with its card and curves, the table (results.md) and the ONNX models (onnx/).
   Next, the real model, with the internet and a GPU:  ./bin/reproduce.sh""")
PYTHON
