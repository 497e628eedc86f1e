# Sourced by demo.sh, test.sh and reproduce.sh from the repository root: make .venv if there is none, install the given
# requirement files if they changed, and put .venv on PATH.
#   setup_venv REQUIREMENTS_FILE...
setup_venv() {
    local python version stamp
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or one that was interrupted
        for python in python3 python3.13 python3.12 python3.11 ""; do
            [ "$python" ] || { echo "error: no Python 3.11 to 3.13 found; install one (Debian: apt install python3 python3-venv)" >&2; return 2; }
            version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) || continue
            case "$version" in 3.11 | 3.12 | 3.13) break ;; esac
        done
        echo "== making .venv with $python ($version)"
        "$python" -m venv --clear .venv || { echo "error: $python has no venv (Debian: apt install python3-venv)" >&2; return 2; }
    fi
    stamp=$(cat "$@" | cksum)
    if [ "$(cat ".venv/installed-$1" 2>/dev/null)" != "$stamp" ]; then
        echo "== installing $1 (the first time: several minutes, over a gigabyte if pip installs the CUDA build of torch)"
        .venv/bin/python -m pip install --disable-pip-version-check -r "$1" || { echo "error: $1 needs PyPI once" >&2; return 2; }
        echo "$stamp" >".venv/installed-$1"
    fi
    PATH=$PWD/.venv/bin:$PATH
}
