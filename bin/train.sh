#!/usr/bin/env bash
# Train by one published recipe, by all three, or by the recommended one; flags are passed on to the script.
#
#   ./bin/train.sh                                   all three recipes on kakaobank/kf-deberta-base
#   ./bin/train.sh best --bf16                       the recommended one: NLI, three times STS, their mean; output/best
#   ./bin/train.sh multi_task --bf16                 one recipe
#   ./bin/train.sh all --model_name_or_path klue/roberta-base --max_rounds 100
#
# Flags go to every recipe that runs: with all and best, only those that all have. best goes on where it was stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi

# Stage 1: one epoch of KorNLI triplets. Stage 2, from stage 1's model: two epochs of KorSTS pairs, ranked in 32s, by
# three seeds. Stage 3: the mean of the three models' weights, kept where it is the best on dev.
train_best() {
    local data=() previous= flag nli seed runs=()
    for flag in "$@"; do
        case "$flag" in --output_dir* | --output_prefix* | --resume* | --revision* | --sts_loss* | --scale* | --nli_mini* | --push* | --hub*)
            echo "error: ${flag%%=*} is no flag of all stages; run training_nli.py and training_sts.py one by one" >&2 && return 2 ;;
        esac
        case "$flag" in --dataset_path=*) data=("$flag") ;; esac
        if [ "$previous" = --dataset_path ]; then data=(--dataset_path "$flag"); fi
        previous=$flag
    done
    source "$root/bin/setup.sh"
    echo "== stage 1: training_nli.py"
    train_once output/best/nli "$root/training_nli.py" "$@"
    nli=$run
    for seed in 1 2 3; do
        echo "== stage 2: training_sts.py, seed $seed"
        train_once "output/best/sts_$seed" "$root/training_sts.py" --sts_loss cosent --batch_size 32 \
            --learning_rate 4e-5 --num_epochs 2 --normalize "$@" --model_name_or_path "$nli" --seed "$seed"
        runs+=("$run")
    done
    echo "== stage 3: average.py"
    rm -rf output/best/model
    python "$root/bin/average.py" ${data[@]+"${data[@]}"} --model_name_or_path "${runs[@]}" --output_dir output/best/model
}

recipes=(sts nli multi_task)
case "${1:-all}" in
    best) shift; train_best "$@"; exit ;; # no &&: it would switch -e off inside
    sts | nli | multi_task) recipes=("$1") && shift ;;
    all) shift $(($# > 0)) ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    -*) ;; # flags only: all recipes
    *) echo "error: unknown recipe $1; give best, sts, nli, multi_task or all" >&2 && exit 2 ;;
esac

for recipe in "${recipes[@]}"; do
    echo "== training_$recipe.py"
    python "$root/training_$recipe.py" "$@"
done
