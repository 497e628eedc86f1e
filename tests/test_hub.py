"""A rehearsal of the real hub on loopback: what it serves, what goes wrong there, and what works without it."""

import socket

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

import hub as rehearsal
import zoo
from kf_deberta.model.load import load_model
from kf_deberta.model.save import save_model
from zoo import SENTENCES, embed, refused

BASE, PUBLISHED = "kakaobank/kf-deberta-base", "upskyy/kf-deberta-multitask"


@pytest.fixture(scope="module")
def server(toy_base, tmp_path_factory):
    """The hub with the two models that this project names, in the layouts that the real one serves."""
    folder = tmp_path_factory.mktemp("hub")
    base = zoo.write_encoder("deberta", toy_base, folder / "base", "ForMaskedLM")
    save_model(load_model(str(base), device="cpu", max_seq_length=32), published := folder / "published")
    for unused in ("pytorch_model.bin", "onnx/model.onnx", "checkpoint-9/model.safetensors"):
        (published / unused).parent.mkdir(exist_ok=True)
        (published / unused).write_text("never downloaded")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with rehearsal.serve() as server:
        server.base, server.ids = base, {BASE: server.add(BASE, base), "old": server.add(PUBLISHED, base, "old")}
        server.ids[PUBLISHED] = server.add(PUBLISHED, published)
        server.add("owner/gated", published)
        yield server


@pytest.fixture
def point(server, tmp_path, monkeypatch):
    """Point the client, which has an empty cache, to this hub; the function points it elsewhere (None: offline)."""

    def point(url):
        huggingface_hub.close_session()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", url is None)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.setenv("HF_TOKEN", "hf_rehearsal")
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    point(server.url)
    yield point
    huggingface_hub.close_session()


def test_a_pickled_base_is_downloaded_and_one_that_stays_incomplete_is_no_model(server, point, tmp_path):
    model = load_model(BASE, device="cpu")
    assert model.revision == server.ids[BASE]
    assert torch.equal(model.encode(SENTENCES, convert_to_tensor=True), embed(str(server.base)))
    (weights,) = tmp_path.glob("models--kakaobank--*/snapshots/*/pytorch_model.bin")
    weights.unlink()
    point(None)
    refused(BASE, "not cached, and cannot be downloaded")


def test_only_what_is_needed_is_downloaded_and_commits_are_pinned(server, point, tmp_path):
    model = load_model(PUBLISHED, device="cpu")
    assert model.revision == server.ids[PUBLISHED] and model.max_seq_length == 32
    assert (folder := tmp_path / "models--upskyy--kf-deberta-multitask/snapshots" / model.revision).is_dir()
    assert (folder / "model.safetensors").exists() and (folder / "1_Pooling" / "config.json").exists()
    assert not any("never downloaded" in path.read_text(errors="replace") for path in folder.rglob("*.*"))
    for revision in ("old", server.ids["old"]):
        assert load_model(PUBLISHED, device="cpu", revision=revision).revision == server.ids["old"]


def test_refusals_of_the_hub_are_lines_of_their_own(point, monkeypatch):
    refused("output/no/such/run", "^output/no/such/run: no such directory")
    refused("owner/gated", "^owner/gated: gated; accept its terms at .* and log in with hf auth login")
    refused(PUBLISHED, "no revision no-such-branch; give a branch, a tag or", revision="no-such-branch")
    for token in ("hf_rehearsal", ""):
        monkeypatch.setenv("HF_TOKEN", token)
        refused("owner/none", "^owner/none: no such directory, and no such model at .*/owner/none; check the name")


TROUBLES = {  # settings, hub, message
    "offline": ({}, None, "offline mode is enabled.*; check .*HF_TOKEN"),
    "refused": ({}, "http://127.0.0.1:9", "refused"),
    "silent": ({}, "silent", "timed out"),
    "proxy": ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "http://localhost:9", "socksio.*; check .*ALL_PROXY"),
    "token": ({"HF_TOKEN": "hf_한글"}, "http://localhost:9", "; check .*HF_TOKEN"),
    "certificate": ({"SSL_CERT_FILE": "/no/such.pem"}, "https://localhost:9", "; check .*SSL_CERT_FILE"),
    "unreadable": ({"HF_TOKEN": ""}, "http://localhost:9", "Is a directory: "),  # stands for one without permission
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_without_a_hub_what_is_cached_works_and_the_rest_is_one_line(trouble, server, point, monkeypatch, tmp_path):
    expected = embed(PUBLISHED)
    settings, url, message = TROUBLES[trouble]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point(f"http://127.0.0.1:{silent.getsockname()[1]}" if url == "silent" else url)
        for key, value in settings.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path))
        monkeypatch.setattr("kf_deberta.model.load.HUB_SECONDS", 0.5)
        assert torch.equal(embed(PUBLISHED), expected)
        refused(BASE, f"^{BASE}: not cached, and cannot be downloaded .*{message}")
