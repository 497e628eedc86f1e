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
# usage: train_once FOLDER SCRIPT FLAG...
train_once() {
    local folder=$1
    shift
    run=$(newest_run "$folder")
    python "$@" --output_dir "$folder" ${run:+--resume "$run"} || return
    run=$(newest_run "$folder")
}

newest_run() { (ls -d "$1"/kor_*/ 2>/dev/null || true) | sort | tail -n 1; }
