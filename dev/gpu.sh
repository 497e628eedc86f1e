#!/usr/bin/env bash
# What is measured on a GPU, in 6 minutes and without a network; Markdown on stdout.
#
#   ./dev/gpu.sh                   kf-deberta-base's shape with random weights, on the first GPU
#   ./dev/gpu.sh cpu               a dry run of the same commands with one layer
#
# $PYTHON (.venv/bin/python if there is one, else python3) has a torch for this GPU. What else it lacks comes from the
# wheels in $WHEELS (.whl); fill that folder with: pip download --no-deps --only-binary=:all: -d .whl NAME==VERSION ...
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
device=${1:-cuda} layers=12 vocab=130000 rounds=10 copies=40 bf16=(--bf16)
[ "$device" = cpu ] && layers=1 vocab=2000 rounds=1 copies=2 bf16=()
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=${WHEELS:-.whl} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
if [ -d "$wheels" ]; then # torch itself stays as it is
    "$python" -m pip install --quiet --no-index --no-deps --target "$work/site-packages" "$wheels"/*.whl
    export PYTHONPATH="$work/site-packages" # dill pickles modules by value from a folder of another name
fi
# 1. No step waits for the GPU
"$python" -m pytest -q --no-header -p no:cacheprovider tests/test_loop.py -k no_value
# 2. Steps of both objectives, then in float32, too
shape=(--layers "$layers" --vocab "$vocab" --device "$device")
timeout 200 "$python" dev/speed.py "${shape[@]}" --rounds "$rounds" "${bf16[@]}" 2> /dev/null
timeout 100 "$python" dev/speed.py "${shape[@]}" --rounds "$((rounds / 3 + 1))" 2> /dev/null
# 3. One epoch of the script, with tokenization, evaluations and a checkpoint
cp -r sample "$work/data"
for file in KorNLI/sample.train.ko.tsv KorSTS/sts-train.tsv; do # each row $copies times, with a number behind a sentence
    awk -v copies="$copies" 'NR == 1 { OFS = FS = "\t"; print; for (i = 1; i <= NF; i++) if ($i == "sentence1") at = i; next }
        { text = $at; for (k = 1; k <= copies; k++) { $at = text " " k; print } }' "sample/$file" > "$work/data/$file"
done
build="import sys; sys.path[:0] = ['dev']; from speed import *; build_shape(Path('$work/base'), $layers, $vocab)"
"$python" -c "$build"
"$python" training_multi_task.py --dataset_path "$work/data" --model_name_or_path "$work/base" --num_epochs 1 "${bf16[@]}" \
    --eval_steps 10000 --output_dir "$work/out" 2> >(tr '\r' '\n' | grep round/s | tail -n 1 >&2)
