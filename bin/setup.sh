# Sourced by the other scripts of this folder.

# Make .venv if there is none, install what changed, put it on PATH.
# usage: setup_venv REQUIREMENTS_FILE...   (from the repository root)
setup_venv() {
    local python version stamp
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or one that an interrupt left unfinished
        for python in python3 python3.13 python3.12 python3.11 ""; do
            [ -n "$python" ] || { echo "error: no Python 3.11 to 3.13 found; install one (Debian: apt install python3 python3-venv)" >&2; return 2; }
            version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) || continue
            case "$version" in 3.11 | 3.12 | 3.13) break ;; esac
        done
        echo "== making .venv with $python ($version)"
        "$python" -m venv --clear .venv || {
            rm -rf .venv
            echo "error: $python cannot make a virtual environment; install its venv module (Debian: apt install python3-venv)" >&2
            return 2
        }
    fi
    stamp=$(.venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(p, "rb").read() for p in sys.argv[1:])).hexdigest())' "$@")
    if [ "$(cat ".venv/installed-$1" 2>/dev/null)" != "$stamp" ]; then
        echo "== installing $1 (the first time: several minutes, over a gigabyte where pip takes the CUDA build of torch)"
        .venv/bin/python -m pip install --disable-pip-version-check -r "$1" || {
            echo "error: installing $1 failed; it needs PyPI once" >&2
            return 2
        }
        echo "$stamp" >".venv/installed-$1"
    fi
    PATH=$PWD/.venv/bin:$PATH
}

# Train below FOLDER, go on with a run that was stopped there, or keep a finished one; its directory is then in $run.
# A run takes the flags it was begun with, so a later call has to begin with these.
# usage: train_once FOLDER SCRIPT FLAG...
train_once() {
    local folder=$1 flags=${*:3} before status=0
    flags=${flags:+$flags } # ends with a blank, so that a beginning of it ends with a word
    shift
    before=$(newest_run "$folder")
    if [ "$before" ] && [ -f "$folder/flags" ] && [[ $flags != "$(cat "$folder/flags")"* ]]; then
        echo "error: $folder was begun with: $(cat "$folder/flags"); give these flags first, or delete that folder" >&2
        return 2
    fi
    [ "$before" ] || { mkdir -p "$folder" && printf %s "$flags" >"$folder/flags"; }
    python "$@" --output_dir "$folder" ${before:+--resume "$before"} || status=$?
    run=$(newest_run "$folder")
    [ "$status" != 0 ] || [ "$run" ] || exit 0 # that was --help
    return $status
}

# The run of FOLDER that began last; a folder without this file was killed before it began.
newest_run() {
    local file newest=
    for file in "$1"/*/training_arguments.json; do
        file=${file%/*}
        if [ -d "$file" ] && [[ ${file: -19} > ${newest: -19} ]]; then newest=$file; fi
    done
    echo "$newest"
}

# Refuse FLAGS that reproduce.sh and train.sh best set themselves; with $best also those that not all its stages have.
# Sets $dataset and $trust, which later commands need too (empty where not given), and common: what stage 2 takes, which
# has a base, seed and loss of its own.
# usage: sort_flags FLAG...
sort_flags() {
    local word name= problem
    dataset='' trust='' common=()
    for word in "$@"; do
        case "$word" in --*) name=${word%%=*} ;; esac # a word without -- is a value of the flag before it
        problem=
        case "$name" in
            --output_dir | --output_prefix | --resume) problem="is set by this script; leave it out" ;;
            --sts_loss | --nli_batch_size | --sts_batch_size | --push* | --hub*) problem=${best:+"is no flag of all stages"} ;;
            --dataset_path) dataset=${word#--dataset_path} dataset=${dataset#=} ;;
            --trust_remote_code) trust=$name ;;
        esac
        [ -z "$problem" ] || { echo "error: $name $problem, or run the training scripts one by one" >&2; return 2; }
        case "$name" in
            --model_name_or_path | --revision | --seed | --scale | --nli_mini_batch_size) ;;
            *) common+=("$word") ;;
        esac
    done
}
