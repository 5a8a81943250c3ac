"""Takes a screenshot of the page of `phi3v-train serve` after a question was answered there, in headless Chromium.

    python benchmarks/serving/screenshot.py MODEL OUT.png --ask QUESTION [--image FILE ...]

The model is served on loopback; the images are dropped on the page and the question is asked as a user does it.
"""

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.request import urlopen

import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import HTMLResponse

from phi3v_data.errors import UserError
from phi3v_train.models.locate import locate
from phi3v_train.serving.address import bind
from phi3v_train.serving.app import ServerSettings, make_app
from phi3v_train.serving.load import load
from phi3v_train.settings import resolve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
DRIVER = """
(async () => {
  const wait = async (done) => { while (!done()) await new Promise((next) => setTimeout(next, 50)); };
  const files = new DataTransfer();
  for (const [name, type, data] of IMAGES) {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    files.items.add(new File([bytes], name, { type }));
  }
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true }));
  await wait(() => document.querySelectorAll("#waiting img").length === IMAGES.length);
  document.getElementById("question").value = QUESTION;
  document.getElementById("form").requestSubmit();
  await wait(() => document.querySelector(".answer[data-done], .error"));
  await fetch("/answered", { method: "POST" });
})();
"""
HOLD = '<img src="/hold" alt="" hidden>'
"""An image that arrives when the question is answered: Chromium takes its screenshot once everything is loaded."""


def main() -> None:
    """Serve, ask, take the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for phi3v-train serve")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("--ask", required=True, metavar="QUESTION")
    parser.add_argument("--image", type=Path, nargs="+", default=[], metavar="FILE", help="PNG or JPEG")
    parser.add_argument("--size", default="1000,620", metavar="WIDTH,HEIGHT", help="of the window, in pixels")
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("Chromium is not installed")
    try:
        settings = resolve({"model_name_or_path": args.model, "device": "cpu"})
        answerer = load(locate(args.model), settings.config.model).answerer
    except UserError as error:
        sys.exit(str(error))
    try:
        app = make_app(answerer, ServerSettings(name=args.model))
        with tempfile.TemporaryDirectory() as profile:
            take(app, CHROMIUM, args.out, driver(args.ask, args.image), Path(profile), args.size)
    finally:
        answerer.close()
    with Image.open(args.out) as image:
        few_colours = image.convert("RGB").quantize(256)  # a third of the bytes, for the repository
    few_colours.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


def driver(question: str, images: list[Path]) -> str:
    """The script that drops the images and asks."""
    kinds = {".png": "image/png"}
    files = [
        (path.name, kinds.get(path.suffix.lower(), "image/jpeg"), base64.b64encode(path.read_bytes()).decode())
        for path in images
    ]
    return f"const IMAGES = {json.dumps(files)}, QUESTION = {json.dumps(question)};\n{DRIVER}"


def take(app: FastAPI, chromium: str, out: Path, script: str, profile: Path, size: str) -> None:
    """Open the page of the running application with the script in it, and save what is on the screen at the end."""
    answered = threading.Event()
    listening = bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def hold() -> str:
        answered.wait(600)
        return ""

    def drive() -> HTMLResponse:
        page = urlopen(f"{address}/").read().decode()
        return HTMLResponse(page.replace("</body>", f"{HOLD}<script>{script}</script></body>"))

    app.post("/answered")(answered.set)
    app.get("/hold")(hold)
    app.get("/drive")(drive)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        flags = [*FLAGS, f"--window-size={size}", f"--user-data-dir={profile}"]
        command = [chromium, *flags, f"--screenshot={out.absolute()}", f"{address}/drive"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=600)
    finally:
        answered.set()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
