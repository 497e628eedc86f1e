#!/usr/bin/env bash
# Everything about speed that needs a GPU, in under 8 minutes and without a network: tables on stdout.
#
#   ./dev/gpu.sh                   kf-deberta-base's shape with random weights, on the first GPU
#   ./dev/gpu.sh --device cpu      the same commands on one layer, to see them work
#
# Takes $PYTHON (.venv/bin/python where there is one, else python3), which has a torch for this GPU. What else it lacks
# comes from the wheels in $WHEELS (.whl), the peers disentangled-flash and flashdeberta among them; fill that folder
# with: pip download --no-deps --only-binary=:all: -d .whl NAME==VERSION ...
set -uo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=cuda layers=12 vocab=130000 rounds=30 training_rounds=57 patience=1 small=()
case "${1:-}" in
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' dev/gpu.sh && exit ;;
esac
if [ "${1:-} ${2:-}" = "--device cpu" ]; then
    device=cpu layers=1 vocab=2000 rounds=1 training_rounds=1 patience=5 small=(--nli_batch_size 8 --no_memory)
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=${WHEELS:-.whl}
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
# 0. packages; torch itself stays as it is
if [ -d "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/site-packages" "$wheels"/*.whl
    export PYTHONPATH="$work/site-packages" # dill pickles modules by value from a folder of another name
fi
failed=0
# a part that fails or takes longer than its share does not take the others with it
part() { # part NAME SECONDS COMMAND...
    printf '\n## %s\n\n' "$1"
    timeout "$(($2 * patience))" "${@:3}" 2> "$work/stderr"
    local status=$?
    grep "left out" "$work/stderr"
    if [ "$status" != 0 ]; then failed=1 && echo "failed with status $status:" && tail -n 5 "$work/stderr"; fi
}
shape=(--layers "$layers" --vocab "$vocab" --device "$device")

# 1. No step waits for the GPU
if "$python" -c 'import pytest' 2> /dev/null; then
    part "Synchronizations" 45 "$python" -m pytest -q --no-header --durations 0 tests/test_no_synchronization.py
fi
# 2. A training step of each objective, then encoding
bfloat16=("${shape[@]}" --dtype bfloat16)
for objective in sts nli; do
    part "${objective^^} step, bfloat16" 80 "$python" dev/speed.py train "${bfloat16[@]}" --objective "$objective" \
        --rounds "$rounds" --peers --no_compile "${small[@]}"
done
part "Steps, float32" 50 "$python" dev/speed.py train "${shape[@]}" --rounds "$((rounds / 3 + 1))" \
    --no_compile "${small[@]}"
part "Encoding, bfloat16" 40 "$python" dev/speed.py encode "${bfloat16[@]}" --no_onnx
# 3. The product's own loop, tokenization, evaluation and checkpoint included: one epoch of the sample corpus
part "Base" 20 "$python" - "$work/base" "$layers" "$vocab" << 'PY'
import sys
sys.path[:0] = ["sample", "."]
from build_base import build_base
from transformers import AutoModel
path, layers, vocab = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
build_base(path, hidden_size=768, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=3072,
           position_buckets=256)
model = AutoModel.from_pretrained(path)
model.resize_token_embeddings(max(vocab, model.config.vocab_size), mean_resizing=False)
model.save_pretrained(path)
print(f"{path}: {sum(p.numel() for p in model.parameters()):,} parameters")
PY
for workers in 0 2; do # processes that tokenize beside the steps
    start=$(date +%s)
    part "Run of $training_rounds rounds, bfloat16, $workers workers" 60 "$python" training_multi_task.py --bf16 \
        --dataset_path sample --model_name_or_path "$work/base" --output_dir "$work/workers$workers" \
        --max_rounds "$training_rounds" --disable_tqdm --dataloader_num_workers "$workers"
    echo "whole command: $(($(date +%s) - start)) s; its loop with an evaluation and a checkpoint, in seconds:"
    grep -h '"train_runtime"' "$work/workers$workers"/*/trainer_state.json
done
# 4. Last, because compiling may take longer than its share
part "STS step, bfloat16, torch.compile" 110 "$python" dev/speed.py train "${bfloat16[@]}" --objective sts \
    --rounds "$rounds" "${small[@]}"
exit "$failed"
