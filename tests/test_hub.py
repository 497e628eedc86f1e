"""A rehearsal of the real hub on loopback: what it serves, what goes wrong there, what is asked and what is pushed."""

import os
import subprocess
import sys

import pytest

import hub_models
from hub import TOKEN, serve

WEIGHTS = 48_000  # pieces of the base: 12 MB of weights, more than the client takes at once


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub with the models that this project names, and their commits by name."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as server:
        server.commits = {
            "kakaobank/kf-deberta-base": server.add(
                "kakaobank/kf-deberta-base", hub_models.kf_deberta_base(folder / "base", WEIGHTS)
            )
        }
        yield server


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of a machine that reaches this hub and has cached nothing yet."""
    home = tmp_path_factory.mktemp("home")
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def test_the_client_downloads_through_redirects_429_and_a_cut_connection(hub, online):
    hub.cut, hub.busy = {"pytorch_model.bin"}, {"config.json"}
    code = (
        "import hashlib; from huggingface_hub import snapshot_download as get; from pathlib import Path\n"
        "folder = Path(get('kakaobank/kf-deberta-base'))\n"
        "print(folder.name, hashlib.sha256((folder / 'pytorch_model.bin').read_bytes()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | online | {"HF_TOKEN": TOKEN}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    commit, digest = result.stdout.split()
    assert commit == hub.commits["kakaobank/kf-deberta-base"] and digest in hub.objects
    assert not hub.cut and not hub.busy
    whole, rest = hub.asked("/cdn/", "GET")
    assert whole.range is None and rest.range.startswith("bytes=1048") and rest.status == 206
    assert {request.token for request in hub.asked("/cdn/")} == {None}, "a token must not leave the hub"
