"""The server as its clients see it: the `openai` package, plain HTTP, a browser."""

import io
import json
import os
import queue
import re
import shutil
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
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse
from processes import MODULE, AnyProcess, start
from report_browser import CHROMIUM, FLAGS
from served import BLUE, RED, ask_about, data_url, post, question, running, served, small_answerer, until

from phi3v_data.errors import UserError
from phi3v_data.formats import fetch
from phi3v_train.serving.address import bind, host_name, web_origin
from phi3v_train.serving.app import ServerSettings, make_app
from phi3v_train.serving.protocol import Limits, parse_body
from phi3v_train.serving.request import Sampling
from phi3v_train.serving.run_server import GracefulServer

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


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_example_of_a_page_prints_an_answer(page: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(import (?:base64\n\nimport )?openai\n.*?)```", text_of(page), re.DOTALL)
    (name,) = re.findall(r'model="([^"]+)"', block)
    RED.save(tmp_path / "frame.jpg")
    with running(make_app(small_answerer(), ServerSettings(name=name))) as made:
        code = block.replace("http://127.0.0.1:8000", made)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing")
def test_the_curl_command_of_the_readme_is_answered(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(FRAME=.*?)```", text_of("README.md"), re.DOTALL)
    frame = tmp_path / re.findall(r"base64 -w0 ([^)]+)\)", block)[0]
    frame.parent.mkdir(parents=True)
    RED.save(frame)
    with running(make_app(small_answerer(), ServerSettings(name="merged"))) as made:
        script = block.replace("http://127.0.0.1:8000", made)
        done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    answer = json.loads(done.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["prompt_tokens"] > 313
    assert answer["choices"][0]["message"]["role"] == "assistant"


def text_of(page: str) -> str:
    """A page of the project."""
    return (Path(__file__).parents[2] / page).read_text(encoding="utf-8")


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
    ({"n": 2}, 400, "'n' can only be 1: leave it out", "n"),
    ({"store": True}, 400, "'store' asks to keep the answer, which this server never does: leave it out", "store"),
    ({"logprobs": True}, 400, "'logprobs' is not supported here: leave it out", "logprobs"),
    ({"tools": [{"type": "function"}]}, 400, "'tools' cannot be used, as tools are not supported here: leave it out",
     "tools"),
    ({"frequency_penalty": 0.5}, 400, "'frequency_penalty' is not supported here: leave it out", "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, 400, "'response_format' is not supported here: leave it out",
     "response_format"),
    ({"top_k": 3}, 400, "'top_k' is not a parameter of this server", "top_k"),
    ({"model": "gpt"}, 404, "there is no model 'gpt' here, only 'tiny'", "model"),
    ({"max_tokens": 5000}, 400, "max_tokens 5,000 is over the limit of this server, 4,096", "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": 5000}, 400,
     "max_completion_tokens 5,000 is over the limit of this server, 4,096", "max_completion_tokens"),
    ({"max_tokens": 2, "max_completion_tokens": 3}, 400,
     "'max_tokens' and 'max_completion_tokens' differ: give one of them", "max_tokens"),
    ({"max_tokens": 0}, 400, "'max_tokens' is 0, not an integer from 1 on", "max_tokens"),
    ({"temperature": 3}, 400, "'temperature' is 3, not a number from 0 to 2", "temperature"),
    ({"temperature": "1"}, 400, "'temperature' is '1', not a number from 0 to 2", "temperature"),
    ({"stop": ["a", ""]}, 400, "'stop' has 1 to 4 strings of 1 to 1,000 characters", "stop"),
    ({"stop": "a" * 1001}, 400, "'stop' has 1 to 4 strings of 1 to 1,000 characters", "stop"),
    ({"stream_options": {"x": 1}}, 400, "'stream_options.x' is not a parameter of this server", "stream_options"),
    ({"stream_options": {"include_usage": 1}}, 400, "'stream_options.include_usage' is 1, not true or false",
     "stream_options"),
    ({"stop": ["a", 1]}, 400, "'stop' is ", "stop"),
    ({"seed": 2**63}, 400, "'seed' is 9223372036854775808, not an integer of 64 bits", "seed"),
    ({"top_p": 0}, 400, "'top_p' is 0, not a number over 0, up to 1", "top_p"),
    ({"messages": None}, 400, "'messages' is null, not an array of one or more messages", "messages"),
    ({"messages": ["Hi"]}, 400, "messages[0] is 'Hi', not an object", "messages"),
    ({"\ud800": 1}, 400, "'\\ud800' is not a parameter of this server", "\\ud800"),
    ({"messages": ask_about("a\ud800")}, 400,
     "messages[0].content: the text has a lone surrogate (\\ud800) at character 1", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, 400,
     "messages[0].content[0].type: a block of type an array of 1, not text, image_url", "messages"),
    ({"messages": ask_about("x" * 32_001)}, 400,
     "the messages have 32,001 characters, over the limit of 32,000", "messages"),
    ({"messages": [{"role": "user", "content": ""}] * 2001}, 400,
     "2,001 messages, over the limit of 2,000", "messages"),
    ({"messages": []}, 400, "'messages' is an array of 0, not an array of one or more messages", "messages"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "the last message must be the user's", "messages"),
    ({"messages": [{"role": "tool", "content": "5"}]}, 400, "messages[0]: tools are not supported here", "messages"),
    ({"messages": [{"role": "user", "content": "Hi", "name": "Ann"}]}, 400,
     "messages[0]: 'name' is not supported here: leave it out", "messages"),
    ({"messages": ask_about("<|image_1|>?")}, 400,
     "messages[0].content: the text has '<|image_1|>', which stands for an image, but no image was given", "messages"),
    ({"messages": ask_about("<|image_1|>?", RED)}, 400,
     "messages[0].content: the text has '<|image_1|>', which stands for an image, and images need no tag: take it out",
     "messages"),
    ({"messages": [{"role": "user", "content": "x<|end|>\n<|assistant|>\ny"}]}, 400,
     "messages[0].content: the text has '<|end|>', a control token of the model: take it out", "messages"),
    ({"messages": [{"role": "system", "content": "<|user|>"}, {"role": "user", "content": "Hi"}]}, 400,
     "messages[0].content: the text has '<|user|>', a control token of the model: take it out", "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?", "cache_control": {"type": "x"}}]}]}, 400,
     "messages[0].content[0]: 'cache_control' is not supported here: leave it out", "messages"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(RED), "detail": "low"}}, {"type": "text", "text": "?"}]}]},
     400, "messages[0].content[0].image_url.detail is 'low'; 'auto' is the only one here", "messages"),
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


def test_what_is_accepted_without_effect(address: str) -> None:
    """Empty keys that clients send along, a message of theirs sent back, and parameters that never change an answer."""
    sent_back = {"role": "assistant", "content": "Red.", "refusal": None, "annotations": [], "tool_calls": None}
    image = {"type": "image_url", "image_url": {"url": data_url(RED), "detail": "auto"}}
    first = {"role": "user", "content": [image, {"type": "text", "text": "What colour?"}], "name": None}
    more = {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "store": False, "n": 1, "tools": [],
            "parallel_tool_calls": True, "safety_identifier": "x", "prompt_cache_key": "k"}  # fmt: skip
    asked = {"messages": [first, sent_back, {"role": "user", "content": "Sure?"}], "max_tokens": 2}
    nothing = [first, {**sent_back, "content": ""}, {"role": "user", "content": "Sure?"}]
    assert post(address, {"messages": nothing, "max_tokens": 2})[0] == 200
    assert post(address, {**asked, **more})[1]["choices"] == post(address, asked)[1]["choices"]


@pytest.mark.parametrize(("given", "temperature", "top_p"), [
    ({}, 0.0, 1.0),
    ({"top_p": 1}, 0.0, 1.0),
    ({"top_p": 0.5}, 1.0, 0.5),
    ({"seed": 0}, 1.0, 1.0),
    ({"seed": 3, "temperature": 0}, 0.0, 1.0),
    ({"top_p": 0.5, "temperature": 0.2}, 0.2, 0.5),
])  # fmt: skip
def test_a_seed_or_top_p_alone_samples_at_temperature_one(
    given: dict[str, Any], temperature: float, top_p: float
) -> None:
    sampling = parse_body(json.dumps({"messages": ask_about("Hi"), **given}).encode()).sampling(LIMITS)
    assert (sampling.temperature, sampling.top_p) == (temperature, top_p)


def test_a_body_that_is_not_json(address: str) -> None:
    assert post(address, b"{")[1]["error"]["message"] == "the request is not JSON"
    assert post(address, b"[" * 100_000)[0] == 400
    assert post(address, [1])[1]["error"]["message"] == "the request is not a JSON object"


@pytest.mark.parametrize(("method", "path", "status", "message"), [
    ("GET", "/v1/nothing", 404, "there is no path '/v1/nothing' here; questions go to /v1/chat/completions"),
    ("GET", "/v1/chat/completions", 405, "'/v1/chat/completions' takes POST, not GET"),
    ("DELETE", "/v1/models", 405, "'/v1/models' takes GET, not DELETE"),
])  # fmt: skip
def test_unknown_paths_and_methods_have_the_shape_of_openais_errors(
    address: str, method: str, path: str, status: int, message: str
) -> None:
    with pytest.raises(HTTPError) as error:
        urlopen(Request(address + path, method=method))
    assert error.value.code == status
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert json.load(error.value) == {"error": expected}


def test_a_refused_key_and_an_unknown_model_have_openais_codes(address: str) -> None:
    status, body = post(address, {"messages": ask_about("Hi"), "model": "gpt"})
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")
    with running(make_app(make_unused(), ServerSettings(name="tiny", api_key="secret"))) as own:
        status, body = post(own, {"messages": ask_about("Hi")})
    assert (status, body["error"]["code"], body["error"]["param"]) == (401, "invalid_api_key", None)


def test_a_web_page_of_another_site_cannot_ask(address: str) -> None:
    """Neither by a form or a request without preflight, which are not JSON, nor by one that says where it is from."""
    asked = {"messages": ask_about("Hi"), "max_tokens": 1}
    status, body = post(address, asked, **{"Content-Type": "text/plain;charset=UTF-8"})
    assert (status, body["error"]["message"]) == (
        415, "the Content-Type is 'text/plain'; send application/json")  # fmt: skip
    status, body = post(address, asked, Origin="https://evil.example")
    assert (status, body["error"]["message"]) == (
        403, "pages of 'https://evil.example' may not ask here; `serve --origins` allows them")  # fmt: skip
    assert post(address, asked, Origin="null")[0] == 403
    assert post(address, asked, Origin=address)[0] == 200
    assert post(address, asked, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_a_page_that_is_allowed_may_ask(address: str) -> None:
    app = make_app(make_unused(), ServerSettings(name="tiny", origins=("https://good.example",)))
    with running(app) as own:
        ask = Request(f"{own}/v1/chat/completions", method="OPTIONS", headers={
            "Origin": "https://good.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization,x-stainless-os"})  # fmt: skip
        assert urlopen(ask).headers["Access-Control-Allow-Origin"] == "https://good.example"
        answer = urlopen(Request(f"{own}/v1/models", headers={"Origin": "https://good.example"}))
        assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"
        assert post(own, {}, Origin="https://evil.example")[0] == 403


def make_unused() -> Any:
    """In place of an answerer that is never asked."""
    return SimpleNamespace(close=lambda: None, num_waiting=0, num_running=0, max_waiting=1)


def test_a_failure_of_the_model_is_an_error_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    answerer = small_answerer()
    answerer.model.generate = lambda *args, **kwargs: 1 / 0
    with served(answerer) as address:
        status, body = post(address, {"messages": ask_about("Hi")})
        assert (status, body["error"]["message"]) == (500, "the server failed on this request; its log says why")
        assert body["error"]["type"] == "server_error"
        answerer.encode = lambda *args: 1 / 0  # type: ignore[assignment,return-value]
        assert post(address, {"messages": ask_about("Hi")}) == (500, body)
        assert metric(address, 'phi3v_requests_total{status="500"}') == 2
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_another_host_is_refused(address: str) -> None:
    """A page of another site whose name leads to this machine gets nothing."""
    status, body = post(address, {"messages": ask_about("Hi")}, Host="evil.example")
    assert (status, body["error"]["message"]) == (421, "this server answers to 127.0.0.1, localhost, ::1 only")
    for name in ("localhost:1", "LocalHost", "localhost.:80", "[::1]:80"):
        assert urlopen(Request(f"{address}/health", headers={"Host": name})).status == 200
    for name in ("localhost:80:80", "evil.example:localhost", "127.0.0.1@evil.example", ""):
        assert post(address, {}, Host=name)[0] == 421


def test_a_host_is_named_without_port_and_in_lower_case() -> None:
    """Of a header, and as `--hosts` may be given."""
    names = ("GPU.example.com:8000", "gpu.example.com.", "gpu.example.com", "[FE80::1]:80", "fe80::1")
    assert [host_name(name) for name in names] == ["gpu.example.com"] * 3 + ["fe80::1"] * 2


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with served(small_answerer(), api_key="secret", hosts=()) as address:
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1})[0] == 401
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1}, Authorization="Bearer secre")[0] == 401
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1}, Authorization="Bearer secret")[0] == 200
        assert post(address, {"messages": ask_about("Hi"), "max_tokens": 1}, Authorization="bearer secret")[0] == 200
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


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_work(address: str, stream: bool) -> None:
    before = metric(address, "phi3v_answer_tokens_total")
    body = json.dumps({"messages": ask_about("Hi"), "max_tokens": 4096, "temperature": 2, "seed": 1, "stream": stream})
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
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


def start_server(*args: str, **variables: str) -> AnyProcess:
    return start(*MODULE, "serve", *args, **variables)


def test_sigterm_lets_an_answer_end(tmp_path: Path) -> None:
    """The command itself, in a process of its own; a name that is not text, as a directory's may be, is escaped."""
    server = start_server("tiny", "--port", "0", "--num_crops", "1", "--name", "m\udcffne")
    assert server.stdout is not None
    line = server.stdout.readline()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+  m\\udcffne, fp32 on cpu\n", line)
    client = openai.OpenAI(base_url=f"{line.split()[0]}/v1", api_key="any", max_retries=0)
    chunks = iter(client.chat.completions.create(
        model="m\\udcffne", messages=ask_about("Hello"), max_tokens=40, stream=True, temperature=2, seed=2
    ))  # fmt: skip
    next(chunks)
    server.send_signal(signal.SIGTERM)
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason in ("length", "stop")
    _, told = server.communicate(timeout=60)
    assert server.returncode == 143
    assert "Traceback" not in told


@pytest.mark.parametrize(("grace", "num_signals"), [(600.0, 2), (0.0, 1)])
def test_answers_that_are_cut_off_are_told_so(
    grace: float, num_signals: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a second Ctrl-C, or by the end of the time that answers get: a 503 in JSON, an error event in a stream."""
    said: list[str] = []
    answerer = small_answerer(max_batch=1)
    server = GracefulServer(
        make_app(answerer, ServerSettings(name="tiny", limits=LIMITS)), answerer, grace=grace, say=said.append
    )
    listening = bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    asked = {"messages": ask_about("Hi"), "max_tokens": 4096, "temperature": 2, "seed": 1}
    request = Request(
        f"{address}/v1/chat/completions", json.dumps({**asked, "stream": True}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urlopen(request) as stream, ThreadPoolExecutor(1) as pool:
        assert b"assistant" in stream.readline()
        whole = pool.submit(post, address, asked)
        until(lambda: answerer.num_running + answerer.num_waiting == 2)
        for _ in range(num_signals):
            server.handle_exit(signal.SIGINT, None)
        events = stream.read().split(b"\n\n")
        status, body = whole.result()
    thread.join()
    told = {
        "message": "the server is shutting down; the answer was cut off", "type": "server_error", "param": None,
        "code": None,
    }  # fmt: skip
    assert (status, body) == (503, {"error": told})
    assert json.loads(events[-2].removeprefix(b"data: ")) == {"error": told}
    assert server.num_cut == 2
    limit = ", at most 600 s" if grace else ""
    assert said == [f"finishing 2 answers{limit}; Ctrl-C again ends at once"]
    assert capfd.readouterr().err == ""


def test_a_second_ctrl_c_ends_at_once_with_one_line() -> None:
    """The command itself; the first one says what is waited for."""
    server = start_server("tiny", "--port", "0", "--num_crops", "1", "--quiet", "--max_new_tokens", "100000")
    assert server.stdout is not None
    assert server.stderr is not None
    address = server.stdout.readline().split()[0]
    asked = {"messages": ask_about("Hi"), "temperature": 2, "seed": 1, "stream": True}
    request = Request(
        f"{address}/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request) as stream:
        stream.readline()
        server.send_signal(signal.SIGINT)
        assert server.stderr.readline() == "finishing 1 answer, at most 30 s; Ctrl-C again ends at once\n"
        server.send_signal(signal.SIGINT)
        _, told = server.communicate(timeout=60)
    assert (server.returncode, told) == (130, "Stopped. 1 answer was cut off.\n")


@pytest.mark.parametrize(("args", "key", "message"), [
    (["tiny", "--host", "0.0.0.0"], "", "set the environment variable PHI3V_API_KEY"),
    (["tiny", "--host", "256.1.1.1"], "secret", "--host 256.1.1.1 --port 8000: "),
])  # fmt: skip
def test_what_keeps_a_server_from_starting(args: list[str], key: str, message: str) -> None:
    server = start_server(*args, PHI3V_API_KEY=key)
    out, told = server.communicate(timeout=120)
    assert (server.returncode, out) == (2, "")
    assert message in told
    assert "Traceback" not in told


def test_a_taken_port_is_told_before_anything_slow_is_imported(address: str) -> None:
    port = address.rpartition(":")[2]
    server = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "phi3v_train", "serve", "tiny", "--port", port],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert server.returncode == 2
    assert "Address already in use; choose another --port" in server.stderr
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", server.stderr, re.MULTILINE))
    assert "phi3v_train.serving.address" in imported
    assert imported.isdisjoint({"torch", "fastapi", "transformers", "uvicorn"})


@pytest.mark.parametrize(("given", "origin"), [
    ("https://Example.com/", "https://example.com"),
    ("HTTPS://example.com:443", "https://example.com"),
    ("http://localhost:3000", "http://localhost:3000"),
    ("http://[::1]:80", "http://[::1]"),
    ("chrome-extension://abc", "chrome-extension://abc"),
    ("*", None), ("https://*.example.com", None), ("https://example.com/page", None), ("https://a@example.com", None),
    ("https://example.com:x", None), ("null", None),
])  # fmt: skip
def test_an_origin_is_taken_as_browsers_write_it(given: str, origin: str | None) -> None:
    if origin is not None:
        assert web_origin(given) == origin
        return
    with pytest.raises(UserError, match=r"^--origins .*: expected SCHEME://HOST"):
        web_origin(given)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_asks_about_a_dropped_image(tmp_path: Path) -> None:
    """As in a browser: an image is dropped, a question typed, the answer streams; others follow, and new chats."""
    answerer = small_answerer()
    app = make_app(answerer, ServerSettings(name="tiny", limits=Limits(new_tokens=8)))
    script = f"""
    (async () => {{
      const real = window.fetch;
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
      const sent = [];
      window.fetch = async (path, options) => {{  // an answer that begins and does not end
        if (path !== "/v1/chat/completions") return real(path, options);
        sent.push(JSON.parse(options.body).messages.length);
        return new Response(new ReadableStream({{ start(stream) {{
          const silent = options.body.includes("Never mind");
          const half = 'data: {{"choices": [{{"delta": {{"content": "half"}}}}]}}\\n\\n';
          if (!silent) stream.enqueue(new TextEncoder().encode(half));
          options.signal.addEventListener("abort", () => stream.error(new DOMException("", "AbortError")));
        }} }}));
      }};
      for (const question of ["And now?", "A new question"]) {{
        document.getElementById("question").value = question;
        document.getElementById("form").requestSubmit();
        await wait(() => [...document.querySelectorAll(".answer")].at(-1)?.textContent === "half");
        document.getElementById("new").click();
        await new Promise((next) => setTimeout(next, 50));
      }}
      document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: files, bubbles: true }}));
      await wait(() => document.querySelectorAll("#waiting img").length === 1);
      document.getElementById("question").value = "Never mind";
      for (const told of [2, 0]) {{  // ask, and stop before there is a word: all is as before
        document.getElementById("form").requestSubmit();
        await wait(() => document.querySelectorAll("#talk > *").length === told);
      }}
      const kept = [document.getElementById("question").value, document.querySelectorAll("#waiting img").length];
      await real("/seen", {{ method: "POST", body: JSON.stringify({{ answers, asked, sent, kept }}) }});
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
    assert found["sent"] == [5, 1, 1]  # New chat during an answer forgets the conversation
    assert found["kept"] == ["Never mind", 1]
