#!/usr/bin/env bash
# Install the clients in which tests/test_onnx_clients.py runs an export, once, into ~/.cache/kf-deberta-clients (or
# $KF_CLIENTS): transformers.js by npm; onnxruntime (the oldest and newest for this Python) and FastEmbed by pip, apart
# from .venv, whose pins they do not share. What cannot be installed is said, and the tests skip it.
set -uo pipefail
CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
clients=${KF_CLIENTS:-$HOME/.cache/kf-deberta-clients}
python=.venv/bin/python
mkdir -p "$clients"

install() { # NAME COMMAND...: the command fills NAME.part, which becomes NAME when it ends well
    local name=$1 part=$clients/$1.part
    shift
    [ -d "$clients/$name" ] && return
    rm -rf "$part" && mkdir "$part"
    if "$@" "$part" >"$part.log" 2>&1 && mv "$part" "$clients/$name"; then
        rm "$part.log"
    else
        echo "$name: not installed ($(tail -n 1 "$part.log")), so its tests are skipped"
    fi
}
pip_target() { "$python" -m pip install --retries 0 --disable-pip-version-check --only-binary :all: "${@:1:$#-1}" --target "${!#}"; }
npm_prefix() { npm install --ignore-scripts --no-audit --no-fund --fetch-retries=0 "${@:1:$#-1}" --prefix "${!#}"; } # scripts fetch CUDA

case $("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")') in
    3.11) oldest=1.15.1 ;;
    3.12) oldest=1.17.0 ;;
    *) oldest=1.20.0 ;;
esac
numpy=$([ "$oldest" = 1.20.0 ] && echo numpy || echo "numpy<2")
install node npm_prefix @huggingface/transformers@4.3.1 &
install onnxruntime-oldest pip_target "onnxruntime==$oldest" "$numpy" &
install onnxruntime-newest pip_target onnxruntime numpy &
wait
install fastembed-0.7 pip_target fastembed==0.7.4 &
install fastembed-0.9 pip_target fastembed==0.9.1 &
wait
