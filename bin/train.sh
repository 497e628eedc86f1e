#!/usr/bin/env bash
# Train by one published recipe, by all three, or by the recommended one; flags are passed on to the script.
#
#   ./bin/train.sh                                   all three recipes on kakaobank/kf-deberta-base
#   ./bin/train.sh best --bf16                       the recommended one: NLI, three times STS, their mean; output/best
#   ./bin/train.sh multi_task --bf16                 one recipe
#   ./bin/train.sh all --model_name_or_path klue/roberta-base --max_rounds 100
#
# Flags go to every recipe that runs: with all and best, only those that all have. best resumes where it stopped; its
# --seed, --revision, --scale and --nli_mini_batch_size are those of the NLI stage.
set -euo pipefail
root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi

# Stage 1: one epoch of KorNLI triplets. Stage 2, from stage 1's model: two epochs of KorSTS pairs, ranked in 32s, by
# three seeds. Stage 3: the mean of the three models' weights, kept where it is the best on dev.
train_best() {
    local best=1 dataset trust common nli seed runs=() model=output/best/model
    source "$root/bin/setup.sh"
    sort_flags "$@"
    echo "== stage 1: training_nli.py"
    train_once output/best/nli "$root/training_nli.py" "$@"
    nli=$run
    for seed in 1 2 3; do
        echo "== stage 2: training_sts.py, seed $seed"
        train_once "output/best/sts_$seed" "$root/training_sts.py" --sts_loss cosent --batch_size 32 --learning_rate 4e-5 \
            --num_epochs 2 --normalize --model_name_or_path "$nli" --seed "$seed" ${common[@]+"${common[@]}"}
        runs+=("$run")
    done
    echo "== stage 3: average.py"
    for run in "${runs[@]}"; do # an average of other runs goes out of the way
        if [ -e "$model" ] && [ ! "$model/average.json" -nt "$run/training_arguments.json" ]; then mv "$model" "$model-$(date +%F_%H-%M-%S)"; fi
    done
    if [ -e "$model" ]; then
        echo "$model: complete"
    else
        python "$root/bin/average.py" ${dataset:+--dataset_path "$dataset"} $trust --model_name_or_path "${runs[@]}" --output_dir "$model"
    fi
}

recipes=(sts nli multi_task)
case "${1:-all}" in
    best) [[ "${2:-}" =~ ^(-h|--help)$ ]] && exec bash "${BASH_SOURCE[0]}" --help; shift; train_best "$@"; exit ;; # no &&: it would switch -e off inside
    sts | nli | multi_task) recipes=("$1") && shift ;;
    all) shift $(($# > 0)) ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    -*) ;; # flags only: all recipes
    *) echo "error: unknown recipe $1; give best, sts, nli, multi_task or all" >&2 && exit 2 ;;
esac

for recipe in "${recipes[@]}"; do
    echo "== training_$recipe.py"
    python "$root/training_$recipe.py" "$@"
done
