"""Open a page of `look` in headless Chromium as a person would: no errors, no requests, labels that can be read.

    apt-get install chromium
    python scripts/checks/report_in_browser.py PHOTOS-look/report.html [--shots DIR]

Phone and desktop width, light and dark. Two kinds are named by keyboard, the labels that the page would save are
read back, and everything that can be pressed must have a name. Exit code 1 if something is wrong.
"""

import argparse
import base64
import csv
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
NAMELESS = """[...document.querySelectorAll('button, a[href], input, canvas, img')].filter(e => !(
  e.getAttribute('aria-label') || e.textContent.trim() || e.getAttribute('alt') || e.title || e.placeholder
  || [...e.querySelectorAll('img')].some(i => i.alt) || (e.tagName === 'IMG' && e.hasAttribute('alt')))).length"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
MISSING = "[...document.images].filter(i => i.src && i.complete && !i.naturalWidth).length"


def _pipe() -> tuple[int, int]:
    """Ends of a pipe to read and write, whose numbers are not those that Chromium takes."""
    read, write = os.pipe()
    ends = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read, write))
    os.close(read)
    os.close(write)
    return ends[0], ends[1]


class Browser:
    """Chromium, spoken to through its debugging pipe (DevTools protocol), so that no library is needed."""

    def __init__(self, profile: str) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            raise SystemExit("chromium is not installed: apt-get install chromium")
        commands, self.output = _pipe()
        self.input, answers = _pipe()
        words = [program, "--headless=new", "--no-sandbox", "--disable-gpu"]
        words += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads commands from 3 and writes answers to 4.
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *words],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self.count, self.buffer, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.downloads = Path(profile) / "downloads"
        self.downloads.mkdir()
        settings = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self.call("Browser.setDownloadBehavior", **settings)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its result; events that come meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Wait until an event of that name has come."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """Value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']['text']}")
        return found["result"].get("value")

    def downloaded(self, name: str) -> str:
        """Text of a file that the page saves; it is taken away, so that the next is found."""
        path = self.downloads / name
        for _ in range(100):
            if path.is_file() and not list(self.downloads.glob("*.crdownload")):
                text = path.read_bytes().decode("utf-8")
                path.unlink()
                return text
            time.sleep(0.1)
        raise RuntimeError(f"the page has not saved {name} within 10 s")

    def key(self, key: str, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text)

    def shot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.input, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))


def open_page(browser: Browser, page: Path, width: int, height: int, scheme: str) -> None:
    """Load the page at a width in light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", **metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[feature])
    browser.events.clear()
    browser.call("Page.navigate", url=page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")


def faults_of_events(events: list[dict[str, Any]]) -> list[str]:
    """Errors that the page has logged, and requests other than for itself."""
    found = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            found.append(f"error: {params['exceptionDetails']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            found.append(f"logged: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                found.append(f"request: {url}")
    return found


def label_by_keyboard(browser: Browser) -> list[str]:
    """Name two kinds, label with the keys 1, 2 and 0, and read what would be saved."""
    if not browser.value("Boolean(document.getElementById('desk'))"):
        return []
    browser.value("document.getElementById('label').scrollIntoView({behavior: 'instant'})")
    for kind in ('a "first", kind', "second"):
        browser.value("document.getElementById('new-name').focus()")
        browser.call("Input.insertText", text=kind)
        browser.key("Enter", "\r")
    browser.value("document.activeElement.blur()")
    browser.key("1", "1")
    count = browser.value("document.querySelectorAll('[data-label]').length")
    browser.value("document.getElementById('save').click()")
    rows = list(csv.reader(io.StringIO(browser.downloaded("labels.csv"), newline="")))
    files = browser.value(
        "Object.values(JSON.parse(document.getElementById('data').textContent).files)"
    )
    wanted = min(3, count)
    faults = []
    if rows[0] != ["file", "kind"] or len(rows) != wanted + 1:
        faults.append(f"labels.csv has the lines {rows}, expected a header and {wanted} labels")
    if any(row[0] not in files for row in rows[1:]):
        faults.append("labels.csv names a file that the page does not hold")
    if count >= 3 and [row[1] for row in rows[1:]] != [
        'a "first", kind',
        "second",
        'a "first", kind',
    ]:
        faults.append(f"kinds by keyboard are {[row[1] for row in rows[1:]]}")
    return faults


def open_photo(browser: Browser) -> list[str]:
    """Open a photo by keyboard, count its nearest, and close it again."""
    if not browser.value("document.querySelectorAll('#kinds button.photo').length"):
        return []
    browser.value("document.querySelector('#kinds button.photo').focus()")
    browser.key("Enter", "\r")
    opened = browser.value("document.getElementById('dialog').open")
    photos = browser.value(
        "Object.keys(JSON.parse(document.getElementById('data').textContent).pictures).length"
    )
    near = browser.value("document.querySelectorAll('#dialog-near button').length")
    faults = [] if opened else ["Enter on a photo opens nothing"]
    if near != min(10, photos - 1):
        faults.append(f"{near} nearest photos are shown of {photos}")
    browser.value("document.getElementById('close').click()")
    return faults


def check(browser: Browser, page: Path, shots: Path | None) -> list[str]:
    """Everything that is wrong with a page."""
    faults = []
    for device, (width, height) in WIDTHS.items():
        for scheme in ("light", "dark"):
            open_page(browser, page, width, height, scheme)
            where = f"{device}, {scheme}"
            if shots is not None:
                browser.shot(shots / f"{device}-{scheme}.png", whole=True)
            found = [*open_photo(browser), *label_by_keyboard(browser)]
            if nameless := browser.value(NAMELESS):
                found.append(f"{nameless} elements have no name for a screen reader")
            if (wider := browser.value(WIDER)) > 0:
                found.append(f"the page is {wider} pixels wider than the screen")
            if broken := browser.value(MISSING):
                found.append(f"{broken} pictures are broken")
            if shots is not None:
                browser.shot(shots / f"{device}-{scheme}-label.png")
            faults += [f"{where}: {fault}" for fault in [*found, *faults_of_events(browser.events)]]
    return faults


def main() -> None:
    """Check the pages of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    options = parser.parse_args()
    if missing := [page for page in options.pages if not page.is_file()]:
        parser.error(f"{missing[0]} is no file; sslgh look writes such a page")
    if options.shots is not None:
        options.shots.mkdir(parents=True, exist_ok=True)
    wrong = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            for page in options.pages:
                faults = check(browser, page, options.shots)
                print(f"{page}: {len(faults)} faults", *faults, sep="\n  ")
                wrong |= bool(faults)
        finally:
            browser.process.terminate()
            browser.process.wait()
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
