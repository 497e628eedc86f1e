"""Headless Chromium driven by chromedriver over the WebDriver protocol, with nothing but the standard library."""

import contextlib
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync
    --disable-component-update --disable-dev-shm-usage --window-size=1000,1400
"""


def chromium() -> str | None:
    """The browser, where its driver is there too."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return binary if shutil.which("chromedriver") else None


@contextlib.contextmanager
def served(directory: Path):
    """Serve `directory` on localhost as python -m http.server does; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(directory))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self.session = session

    def call(self, path: str, **body):
        return request(f"{self.session}/{path}", body)

    def script(self, code: str, *arguments):
        return self.call("execute/sync", script=code, args=list(arguments))

    def wait(self, code: str, seconds: float = 120):
        """The first true value of an expression."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.script(f"return {code}"):
                return value
            time.sleep(0.1)
        raise TimeoutError(f"{code}: {self.script('return document.body.innerText')}")


@contextlib.contextmanager
def browser(profile: Path):
    """A Browser with the new, empty user directory `profile`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/status", timeout=5):
                break
            time.sleep(0.1)
        options = {"binary": chromium(), "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = f"{address}/session/{request(f'{address}/session', capabilities)['sessionId']}"
        try:
            yield Browser(session)
        finally:
            urllib.request.urlopen(urllib.request.Request(session, method="DELETE"), timeout=60).close()
    finally:
        driver.terminate()
        driver.wait()


def request(url: str, body: dict):
    """POST a command; its value."""
    data = json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(call, timeout=120) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from error
