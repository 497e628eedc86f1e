#!/usr/bin/env bash
# Install the clients in which tests/test_onnx_clients.py runs exports, once, into ~/.cache/kf-deberta-clients: from npm
# transformers.js, from PyPI FastEmbed and the oldest onnxruntime for this Python, which .venv's pins exclude. What
# cannot be installed is reported, and its tests are skipped.
set -uo pipefail
python=$PWD/.venv/bin/python
clients=${KF_CLIENTS:-$HOME/.cache/kf-deberta-clients}
mkdir -p "$clients" && cd "$clients" || exit 0

install() { # NAME COMMAND...: the command fills NAME.part, which becomes NAME if it ends well
    local name=$1
    shift
    [ -d "$name" ] && return
    rm -rf "$name.part" && mkdir "$name.part"
    if "$@" "$name.part" > "$name.log" 2>&1 && mv "$name.part" "$name"; then
        echo "installed $name"
    else
        echo "$name is not installed ($(tail -n 1 "$name.log")), so its tests are skipped"
    fi
}
pip_target() { "$python" -m pip install --retries 0 --disable-pip-version-check --only-binary :all: "${@:1:$#-1}" --target "${!#}"; }
npm_prefix() { npm install --ignore-scripts --no-audit --no-fund --fetch-retries=0 "${@:1:$#-1}" --prefix "${!#}"; } # scripts fetch CUDA

oldest=$("$python" -c 'import sys; print({11: "1.15.1 numpy<2", 12: "1.17.0 numpy<2"}.get(sys.version_info[1], "1.20.0 numpy"))')
install transformers.js npm_prefix @huggingface/transformers@4.3.1 &
install onnxruntime pip_target "onnxruntime==${oldest% *}" "${oldest#* }" &
wait
install fastembed pip_target fastembed==0.9.1
