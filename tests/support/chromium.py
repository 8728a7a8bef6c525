"""A headless Chromium that a test presses keys in, spoken to over a pipe."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Tab:
    """A page that is open: what it says of itself, and keys that are pressed in it."""

    def __init__(self, sent: IO[bytes], received: IO[bytes], page: Path) -> None:
        self._sent, self._received = sent, received
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def call(self, method: str, **more: Any) -> dict[str, Any]:
        """What a method of the DevTools protocol answers."""
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": more, **self._session}
        self._sent.write(json.dumps(told).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._received.read(1)) != b"\0":
            assert byte, "the browser ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        return message

    def value(self, expression: str) -> Any:
        """Of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Tab, Enter or a space, as a keyboard sends them."""
        code, text = _KEYS[key]
        told = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **told, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)


@contextmanager
def opened(program: str, page: Path) -> Iterator[Tab]:
    """The page in a browser of its own."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
        command = [program, *options, "--no-first-run", f"--user-data-dir={profile}"]
        # It reads descriptor 3 and writes 4.
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        process = subprocess.Popen(
            ["bash", "-c", script, *command],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (theirs_in, theirs_out):
            os.close(descriptor)
        with os.fdopen(ours_out, "wb", 0) as sent, os.fdopen(ours_in, "rb") as received:
            try:
                yield Tab(sent, received, page)
            finally:
                process.terminate()
                process.wait(30)
