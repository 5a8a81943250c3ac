"""The server as its clients see it: the `openai` package, plain HTTP, a browser."""

import io
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse
from report_browser import CHROMIUM, FLAGS
from served import BLUE, RED, ask_about, data_url, question, running, served, small_answerer

from phi3v_data.formats import fetch
from phi3v_train.serving.answerer import Sampling
from phi3v_train.serving.app import ServerSettings, make_app
from phi3v_train.serving.protocol import Limits

LIMITS = Limits(body_bytes=200_000, images=2, pixels=10_000, prompt_tokens=2000, new_tokens=4096)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(small_answerer(max_batch=4), limits=LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def direct(*asked: Any, tokens: int = 8) -> str:
    """The answer without a server."""
    answerer = small_answerer()
    text = "".join(piece.text for piece in answerer.submit(answerer.encode(*question(*asked)), Sampling(tokens)))
    answerer.close()
    return text


def test_a_whole_answer(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "phi3v"
    made = client.chat.completions.create(
        model="tiny", messages=ask_about("What colour?", RED), max_completion_tokens=8, user="me"
    )
    assert made.choices[0].message.content == direct("What colour?", RED)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (330, 8, 338)


def test_a_streamed_answer_with_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(
        model="tiny", messages=ask_about("What colour?", RED), max_tokens=8, stream=True,
        stream_options={"include_usage": True},
    ))  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == direct("What colour?", RED)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert len(chunks) > 6


def test_several_turns_and_a_system_message(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be terse."},
        *ask_about("What colour?", RED),
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Sure?"},
    ]
    made = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert made.usage is not None
    alone = client.chat.completions.create(model="tiny", messages=messages[1:], max_tokens=2)
    assert alone.usage is not None
    assert made.usage.prompt_tokens > alone.usage.prompt_tokens > 330


def test_a_seed_and_a_stop_string(client: openai.OpenAI) -> None:
    def drawn(**more: Any) -> str:
        made = client.chat.completions.create(
            model="tiny", messages=ask_about("Hello"), max_tokens=8, temperature=1.0, **more
        )
        return made.choices[0].message.content or ""

    text = drawn(seed=3)
    assert drawn(seed=3) == text
    assert len({drawn(seed=seed) for seed in range(4)}) == 4
    stopped = client.chat.completions.create(
        model="tiny", messages=ask_about("Hello"), max_tokens=8, temperature=1.0, seed=3, stop=text[3:6]
    )
    assert stopped.choices[0].message.content == text[: text.index(text[3:6])].rstrip()
    assert stopped.choices[0].finish_reason == "stop"


def url_block(url: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}
    ]


FIELD = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(("change", "status", "message", "param"), [
    ({"n": 2}, 400, "'n' is not supported here: leave it out", "n"),
    ({"logprobs": True}, 400, "'logprobs' is not supported here: leave it out", "logprobs"),
    ({"tools": [{"type": "function"}]}, 400, "'tools' is not supported here: leave it out", "tools"),
    ({"frequency_penalty": 0.5}, 400, "'frequency_penalty' is not supported here: leave it out", "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, 400, "'response_format' is not supported here: leave it out",
     "response_format"),
    ({"top_k": 3}, 400, "'top_k' is not a parameter of this server", "top_k"),
    ({"model": "gpt"}, 404, "there is no model 'gpt' here, only 'tiny'", "model"),
    ({"max_tokens": 5000}, 400, "max_completion_tokens 5,000 is over the limit of this server, 4,096",
     "max_completion_tokens"),
    ({"max_tokens": 0}, 400, "'max_tokens': Input should be greater than or equal to 1", "max_tokens"),
    ({"temperature": 3}, 400, "'temperature': Input should be less than or equal to 2", "temperature"),
    ({"stop": ["a", ""]}, 400, "'stop' has 1 to 4 strings, none of them empty", "stop"),
    ({"messages": []}, 400, "'messages': List should have at least 1 item after validation, not 0", "messages"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "the last message must be the user's", "messages"),
    ({"messages": ask_about("<|image_1|>?")}, 400, "messages[0]: the text has the tag <|image_1|>",
     "messages"),
    ({"messages": ask_about("?", RED, RED, RED)}, 400, "3 images, over the limit of 2", "messages"),
    ({"messages": ask_about("?", RED.resize((101, 100)))}, 400,
     f"{FIELD}: has 101 x 100 pixels, over the limit of 10,000", "messages"),
    ({"messages": url_block("file:///etc/passwd")}, 400,
     f"{FIELD}: 'file:///etc/passwd' is neither a data URL nor an http(s) URL", "messages"),
    ({"messages": url_block("http://127.0.0.1/a.png")}, 400,
     f"{FIELD}: URLs are not fetched by this server; send a data URL", "messages"),
    ({"messages": url_block("data:image/png;base64,%%")}, 400,
     f"{FIELD}: the base64 text of the data URL is damaged", "messages"),
    ({"messages": url_block("data:image/png;base64,aGVsbG8=")}, 400, f"{FIELD}: is not an image", "messages"),
    ({"messages": ask_about("word " * 3000)}, 400, "tokens, images included, over the limit of 2,000", "messages"),
    ({"messages": ask_about("x" * 200_000)}, 413, "the request has more than 200,000 bytes", None),
])  # fmt: skip
def test_what_is_refused(address: str, change: dict[str, Any], status: int, message: str, param: str | None) -> None:
    found, body = post(address, {"messages": ask_about("Hi"), "max_tokens": 1, **change})
    assert found == status
    assert message in body["error"]["message"]
    assert body["error"]["param"] == param
    assert len(body["error"]["message"]) <= 300


def post(address: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(f"{address}/v1/chat/completions", data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request) as response:
            return response.status, json.load(response)
    except OSError as error:
        return error.code, json.load(error)  # type: ignore[attr-defined]


def test_a_body_that_is_not_json(address: str) -> None:
    assert post(address, b"{")[1]["error"]["message"] == "the request is not JSON"
    assert post(address, b"[" * 100_000)[0] == 400
    assert post(address, [1])[1]["error"]["message"] == "the request is not a JSON object"


def test_another_host_is_refused(address: str) -> None:
    """A page of another site whose name leads to this machine gets nothing."""
    status, body = post(address, {"messages": ask_about("Hi")}, Host="evil.example")
    assert (status, body["error"]["message"]) == (421, "this server answers to 127.0.0.1, localhost, ::1 only")
    assert urlopen(Request(f"{address}/health", headers={"Host": "localhost:1"})).status == 200


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with served(small_answerer(), api_key="secret", hosts=()) as address:
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1})[0] == 401
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1}, Authorization="Bearer secre")[0] == 401
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1}, Authorization="Bearer secret")[0] == 200
        assert json.load(urlopen(f"{address}/health")) == {"status": "ok", "model": "tiny"}
        with pytest.raises(OSError, match="401"):
            urlopen(f"{address}/metrics")


class Images(BaseHTTPRequestHandler):
    """One image, under any path."""

    def do_GET(self) -> None:
        buffer = io.BytesIO()
        RED.save(buffer, "PNG")
        self.send_response(200)
        self.send_header("Content-Length", str(len(buffer.getvalue())))
        self.end_headers()
        self.wfile.write(buffer.getvalue())

    def log_message(self, *_: Any) -> None:
        pass


def test_urls_are_fetched_if_allowed_but_never_private_ones() -> None:
    site = HTTPServer(("127.0.0.1", 0), Images)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{site.server_port}/red.png"
    with served(small_answerer(), allow_url=True) as address:
        status, body = post(address, {"messages": url_block(url), "max_tokens": 4})
        assert status == 400
        assert "which is not public" in body["error"]["message"]
        fetch.LOCAL_TEST_PORTS.add(site.server_port)
        try:
            fetched = post(address, {"messages": url_block(url), "max_tokens": 4})
            sent = post(address, {"messages": url_block(data_url(RED)), "max_tokens": 4})
        finally:
            fetch.LOCAL_TEST_PORTS.clear()
        assert fetched[0] == 200
        assert fetched[1]["choices"] == sent[1]["choices"]
    site.shutdown()
    site.server_close()


def metric(address: str, name: str) -> float:
    text = urlopen(f"{address}/metrics").read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_work(address: str, stream: bool) -> None:
    before = metric(address, "phi3v_answer_tokens_total")
    body = json.dumps({"messages": ask_about("Hi"), "max_tokens": 4096, "temperature": 2, "seed": 1, "stream": stream})
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(lambda: metric(address, "phi3v_running") == 1)
    until(lambda: metric(address, "phi3v_running") == 0)
    assert metric(address, "phi3v_answer_tokens_total") - before < 4096


def test_many_clients_at_once_get_their_own_answers() -> None:
    """Forty requests of four kinds by sixteen clients; those over the queue's length are told to come again."""
    kinds: list[tuple[Any, ...]] = [
        ("What colour?", RED),
        ("Which?", RED, BLUE),
        ("Hello there",),
        ("And this one?", BLUE),
    ]
    expected = [direct(*asked, tokens=6) for asked in kinds]
    with served(small_answerer(max_batch=4, max_waiting=8)) as address:

        def one(number: int) -> tuple[int, str]:
            while True:
                status, body = post(address, {"messages": ask_about(*kinds[number % 4]), "max_tokens": 6})
                if status == 200:
                    return number % 4, body["choices"][0]["message"]["content"]
                assert (status, body["error"]["message"]) == (429, "too many requests wait; try again later")
                time.sleep(0.1)

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(one, range(40)))
        assert [text for _, text in found] == [expected[kind] for kind, _ in found]
        assert metric(address, 'phi3v_requests_total{status="200"}') == 40
        assert metric(address, "phi3v_answer_tokens_total") == 240


def start(*args: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "phi3v_train", "serve", *args], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
    )  # fmt: skip


def test_sigterm_lets_an_answer_end(tmp_path: Path) -> None:
    """The command itself, in a process of its own."""
    server = start("tiny", "--port", "0", "--num_crops", "1", "--name", "mine")
    assert server.stdout is not None
    line = server.stdout.readline()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+  mine, fp32 on cpu\n", line)
    client = openai.OpenAI(base_url=f"{line.split()[0]}/v1", api_key="any", max_retries=0)
    chunks = iter(client.chat.completions.create(
        model="mine", messages=ask_about("Hello"), max_tokens=40, stream=True, temperature=2, seed=2
    ))  # fmt: skip
    next(chunks)
    server.send_signal(signal.SIGTERM)
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason in ("length", "stop")
    _, told = server.communicate(timeout=60)
    assert server.returncode == 143
    assert "Traceback" not in told


@pytest.mark.parametrize(("args", "key", "message"), [
    (["tiny", "--host", "0.0.0.0"], "", "set the environment variable PHI3V_API_KEY"),
    (["./nowhere", "--port", "0"], "", "no such directory"),
    (["tiny", "--host", "256.1.1.1"], "secret", "--host 256.1.1.1 --port 8000: "),
])  # fmt: skip
def test_what_keeps_a_server_from_starting(args: list[str], key: str, message: str) -> None:
    server = start(*args, PHI3V_API_KEY=key)
    out, told = server.communicate(timeout=120)
    assert (server.returncode, out) == (2, "")
    assert message in told
    assert "Traceback" not in told


def test_a_taken_port_is_told_before_the_model_is_loaded(address: str) -> None:
    server = start("tiny", "--port", address.rpartition(":")[2])
    _, told = server.communicate(timeout=120)
    assert server.returncode == 2
    assert "Address already in use; choose another --port" in told
    assert "loading" not in told


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_asks_about_a_dropped_image(tmp_path: Path) -> None:
    """As in a browser: an image is dropped, a question typed, the answer streams; a second question follows."""
    answerer = small_answerer()
    app = make_app(answerer, ServerSettings(name="tiny", limits=Limits(new_tokens=8)))
    script = f"""
    (async () => {{
      const bytes = Uint8Array.from(atob({json.dumps(data_url(RED).partition(",")[2])}), (char) => char.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([bytes], "red.png", {{ type: "image/png" }}));
      document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: files, bubbles: true }}));
      const wait = async (done) => {{ while (!done()) await new Promise((next) => setTimeout(next, 200)); }};
      await wait(() => document.querySelectorAll("#waiting img").length === 1);
      for (const text of ["What colour?", "Sure?"]) {{
        const before = document.querySelectorAll(".answer[data-done]").length;
        document.getElementById("question").value = text;
        document.getElementById("form").requestSubmit();
        await wait(() => document.querySelectorAll(".answer[data-done]").length > before);
      }}
      const answers = [...document.querySelectorAll(".answer")].map((each) => each.textContent);
      const asked = document.querySelectorAll(".user img").length;
      await fetch("/seen", {{ method: "POST", body: JSON.stringify({{ answers, asked }}) }});
    }})();
    """

    seen: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    async def take(request: HttpRequest) -> str:
        seen.put(await request.body())
        return "thanks"

    app.post("/seen")(take)
    with running(app) as address:
        page = urlopen(f"{address}/").read().decode()
        assert '"MODEL_NAME"' not in page
        app.get("/drive")(lambda: HTMLResponse(page.replace("</body>", f"<script>{script}</script></body>")))
        flags = [flag for flag in FLAGS if "virtual-time" not in flag]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        browser = subprocess.Popen(
            [CHROMIUM, *flags, "--remote-debugging-port=0", profile, f"{address}/drive"],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            found = json.loads(seen.get(timeout=120))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
    assert found["answers"][0] == direct("What colour?", RED)
    assert len(found["answers"]) == 2
    assert found["asked"] == 1
