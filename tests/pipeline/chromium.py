"""A headless Chromium, driven over a pipe by the DevTools protocol: no package, no port."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Text that keys enter; keys without any only move.
KEYS = {"Enter": "\r", " ": " "}
CODES = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "PageUp": 33, "PageDown": 34, "End": 35,
    "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


class Chromium:
    """One tab. Skips the test if no Chromium is installed.

    errors: errors and warnings of its console, and uncaught exceptions. requests: requested URLs.
    """

    def __init__(self, width: int = 1400, height: int = 1000, timeout: float = 60) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._timeout, self._numbers, self._buffer = timeout, itertools.count(1), b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._loaded = 0
        self._profile = tempfile.mkdtemp()
        # Above 4: the child's ends become its file descriptors 3 and 4.
        (its_in, self._out), (self._in, its_out) = (map(_above, os.pipe()) for _ in range(2))
        words = [program, *FLAGS, f"--user-data-dir={self._profile}"]
        words += [f"--window-size={width},{height}", "about:blank"]
        null = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0o600) for n in range(3)]
        ends = [(os.POSIX_SPAWN_DUP2, its_in, 3), (os.POSIX_SPAWN_DUP2, its_out, 4)]
        self._pid = os.posix_spawn(
            program, words, os.environ, file_actions=[*null, *ends], setpgroup=0
        )
        os.close(its_in)
        os.close(its_out)
        self._session: str | None = None
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: Path) -> None:
        """Load a file and wait for its load event; forgets the requests of the one before."""
        self.requests.clear()
        before = self._loaded
        self.call("Page.navigate", url=page.resolve().as_uri())
        give_up = time.monotonic() + self._timeout
        while self._loaded == before:
            self._receive(give_up)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is on the screen."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys as a person would. modifiers: 2 for Ctrl, 8 for Shift."""
        for key in keys:
            facts = {"key": key, "modifiers": modifiers}
            facts |= {"windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper()))}
            text = KEYS.get(key, key if len(key) == 1 else "")
            kind = "keyDown" if text else "rawKeyDown"
            down = facts | ({"text": text} if text else {})
            self.call("Input.dispatchKeyEvent", type=kind, **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", **facts)
        self.settle()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._out, left) :]
        give_up = time.monotonic() + self._timeout
        while number not in self._answers:
            self._receive(give_up)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _receive(self, give_up: float) -> None:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, give_up - time.monotonic()))
            assert ready, f"Chromium said nothing for {self._timeout} s"
            found = os.read(self._in, 2**20)
            assert found, "Chromium ended by itself"
            self._buffer += found
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "id" in message:
            self._answers[message["id"]] = message
        else:
            self._note(message["method"], message["params"])

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(facts["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(json.dumps(facts["args"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(facts["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])


def _above(descriptor: int) -> int:
    """The same file with a number from 10 on, which no child inherits."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
