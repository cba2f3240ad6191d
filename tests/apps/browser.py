"""A headless Chromium that a test drives through a pipe (Chrome DevTools Protocol)."""

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=1280,900"),
)


def _axe() -> Path | None:
    """The script of axe-core: $VOXELWAVE_AXE (such as axe.min.js of the newest npm package), or that of a package."""
    given = os.environ.get("VOXELWAVE_AXE")
    if given:
        return Path(given)
    found = importlib.util.find_spec("axe_core_python")
    folder = next(iter((found and found.submodule_search_locations) or ()), None)
    return None if folder is None else Path(folder) / "axe.min.js"


AXE = _axe()


class Browser:
    """One page of Chromium, which is closed at the end of the `with` block.

    Args:
        timeout_s: the longest wait for one answer.
    """

    def __init__(self, timeout_s: float = 60):
        self.timeout_s = timeout_s
        self.events: list[dict[str, Any]] = []
        self.number, self.buffer, self.messages = 0, b"", deque[dict[str, Any]]()

    def __enter__(self) -> "Browser":
        assert PROGRAM is not None
        self.profile = tempfile.mkdtemp()
        read_commands, self.out = os.pipe()
        self.back, write_answers = os.pipe()
        # Chromium reads commands from 3 and writes answers to 4
        words = [PROGRAM, *_FLAGS, f"--user-data-dir={self.profile}", "--remote-debugging-pipe", "about:blank"]
        script = f'exec 3<&{read_commands} 4>&{write_answers}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        page = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.out)  # Chromium ends when its pipe is closed
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.back)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that arrive in the meantime are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self.number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            else:
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while not self.messages:
            if not select.select([self.back], [], [], self.timeout_s)[0]:
                raise TimeoutError(f"no answer from {PROGRAM} in {self.timeout_s} s")
            part = os.read(self.back, 1 << 20)
            if not part:
                raise ConnectionError(f"{PROGRAM} ended")
            *whole, self.buffer = (self.buffer + part).split(b"\0")
            self.messages.extend(json.loads(one) for one in whole)
        return self.messages.popleft()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call `send` for the page."""
        return self.send(method, self.session, **parameters)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, after waiting for promises."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "exception"))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + self.timeout_s
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not become true in {self.timeout_s} s")
            time.sleep(0.1)

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page from the disk."""
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def picture(self, path: Path | None = None) -> bytes:
        """A screenshot of the page, as PNG."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def click(self, selector: str) -> None:
        """Click on an element."""
        place = self.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.press(*place)

    def press(self, x: float, y: float) -> None:
        """Click at a position in the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def barriers(self, scheme: str = "light") -> list[str]:
        """What axe-core finds on the page against WCAG 2.0, 2.1 and 2.2, levels A and AA.

        Args:
            scheme: "light" or "dark", the colours that the reader prefers.
        """
        assert AXE is not None
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.run(AXE.read_text(encoding="utf-8") + "; 0")
        levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        one = "(v) => `${v.id} (${v.nodes.length}): ${v.nodes[0].html.slice(0, 160)}`"
        found = self.run(f"axe.run({{runOnly: {json.dumps(levels)}}}).then((r) => r.violations.map({one}))")
        return list(found)

    def problems(self) -> list[str]:
        """The errors of the page, and the addresses that it requested outside the disk."""
        self.run("0")
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"].get("exception", {}).get("description")))
            elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
            elif event.get("method") == "Network.requestWillBeSent":
                address = parameters["request"]["url"]
                if not address.startswith(("file:", "data:", "blob:", "about:")):
                    found.append(address)
        return found
