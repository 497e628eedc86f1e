#!/usr/bin/env bash
# Train by one recipe or by all three, one after the other; flags are passed on to the script.
#
#   ./bin/train.sh                                   all three recipes on kakaobank/kf-deberta-base
#   ./bin/train.sh multi_task --bf16                 one recipe
#   ./bin/train.sh all --model_name_or_path klue/roberta-base --max_rounds 100
#
# Flags go to every recipe that runs: with all, only those that all three have.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi

recipes=(sts nli multi_task)
case "${1:-all}" in
    sts | nli | multi_task) recipes=("$1") && shift ;;
    all) shift $(($# > 0)) ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    -*) ;; # flags only: all recipes
    *) echo "error: unknown recipe $1; give sts, nli, multi_task or all" >&2 && exit 2 ;;
esac

for recipe in "${recipes[@]}"; do
    echo "== training_$recipe.py"
    python "$root/training_$recipe.py" "$@"
done
