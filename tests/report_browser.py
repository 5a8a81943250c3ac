"""Headless Chromium as a test sees it: the page's DOM after its script has run, and what the console said."""

import html
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@dataclass(frozen=True)
class Opened:
    """A page after loading."""

    dom: str
    console: tuple[str, ...]

    @property
    def found(self) -> str:
        """The line over the gallery."""
        match = re.search(r'id="found"[^>]*>([^<]*)<', self.dom)
        assert match is not None
        return match[1]

    @property
    def cards(self) -> list[str]:
        """The ids of the samples shown."""
        return re.findall(r'aria-label="Sample ([^,"]*), split', self.dom)


def open_page(page: Path, profile: Path, fragment: str = "", script: str = "") -> Opened:
    """Load a page; `script` runs after the page's own, in a copy without the policy that would stop it."""
    assert CHROMIUM is not None
    if script:
        text = _POLICY.sub("", page.read_text(encoding="utf-8"))
        page = page.with_name(f"driven-{page.name}")
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Opened(done.stdout, tuple(re.findall(r"CONSOLE:\d+\] (.*)", done.stderr)))


def open_on_phone(page: Path, profile: Path, script: str, width: int = 390) -> Opened:
    """Load a page in a frame as wide as a phone; `script` runs outside of it, once it is there, as its `frame`."""
    inside = html.escape(page.read_text(encoding="utf-8"))
    outer = page.with_name(f"phone-{page.name}")
    outer.write_text(
        f'<meta charset="utf-8"><iframe id="frame" style="width:{width}px;height:800px" srcdoc="{inside}"></iframe>'
        "<style>iframe { border: 0 }</style><script>document.getElementById('frame').addEventListener('load', () => {"
        f"const frame = document.getElementById('frame').contentWindow; {script} }});</script>",
        encoding="utf-8",
    )
    return open_page(outer, profile)
