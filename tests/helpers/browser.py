"""Headless Chromium driven by chromedriver over the WebDriver protocol, with nothing but the standard library."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-dev-shm-usage"


def chromium() -> str | None:
    """The browser, where its driver is there too."""
    return (shutil.which("chromium") or shutil.which("google-chrome")) if shutil.which("chromedriver") else None


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """Serve `directory` on localhost as python -m http.server does; yields its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def until(true: Callable, seconds: float = 120) -> None:
    """Call `true` until it is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[tuple[Callable, Callable]]:
    """A window with the new, empty user directory `profile`: functions that send a WebDriver command, and JavaScript.

    command("url", url=...) opens a page, script("document.title") is the value of an expression in it.
    """
    process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    address = ""

    def command(path: str, /, **body):
        call = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(call, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error

    try:
        port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in process.stdout)))[1]
        address = f"http://127.0.0.1:{port}/session"
        options = {"binary": chromium(), "args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        address += f"/{command('', capabilities={'alwaysMatch': {'goog:chromeOptions': options}})['sessionId']}/"
        try:
            yield command, lambda code: command("execute/sync", script=f"return {code}", args=[])
        finally:
            urllib.request.urlopen(urllib.request.Request(address[:-1], method="DELETE"), timeout=60).close()
    finally:
        process.terminate()
        process.wait()
