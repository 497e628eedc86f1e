#!/usr/bin/env bash
# Train by the three published recipes; flags are passed on to each script.
#
#   ./bin/train.sh --model_name_or_path klue/roberta-base --max_rounds 100
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case "${1:-}" in -h | --help) sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;; esac
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi
recipes=(training_sts training_nli training_multi_task)
for recipe in "${recipes[@]}"; do # a flag that one of them lacks is refused before the first begins
    python -c 'import sys; sys.argv[0] = f"{sys.argv[2]}.py"; sys.path.insert(0, sys.argv[1]); from kf_deberta.errors import run
run(lambda: __import__(sys.argv[2]).get_parser().parse_args(sys.argv[3:]) and None)' "$root" "$recipe" "$@"
done
for recipe in "${recipes[@]}"; do
    echo "== $recipe.py"
    python "$root/$recipe.py" "$@"
done
