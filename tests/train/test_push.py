"""`phi3v-train push` and `run --push_to_hub`, against a Hub on loopback that keeps what it is sent."""

import base64
import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from colour_sets import colour_directory
from processes import MODULE, finish, start
from run_dirs import arguments, settings_for

from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.schema import Manifest, SplitInfo
from phi3v_train.cli.app import COMMANDS, HELP

TOKEN = "hf_never_print_me"
REPO = "someone/colours"
NEWER_XET = ("/v1/chunks/", "/v1/xorb-grants/", "/v2/")
"""Parts of Xet's protocol that this Hub lacks, as older servers do."""


def header_errors(text: str) -> list[dict[str, str]]:
    """Faults that the Hub finds in the header of a card: of the base, which must be a name there, and the licence."""
    header = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    faults = []
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", header.get("base_model", "some/base")):
        faults.append('"base_model" is not valid. Use a model id from the Hub')
    licences = header.get("license", "mit")
    for name in licences if isinstance(licences, list) else [licences]:
        if name not in ("apache-2.0", "cc-by-4.0", "mit", "openrail", "other"):
            faults.append('"license" must be one of [...]')
    return [{"message": fault} for fault in faults]


@dataclass
class Hub:
    """Requests that arrived, by method and path, files of each branch, repositories that were made."""

    url: str = ""
    refuse: tuple[str, int] = ("", 0)
    public: bool = False
    requests: list[str] = field(default_factory=list)
    tokens: dict[str, str | None] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    xorbs: list[bytes] = field(default_factory=list)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """The reply's JSON, None for an empty one."""
        if path.startswith("/upload/"):
            self.stored[path.rpartition("/")[2]] = body
            return None
        if path.startswith("/v1/xorbs/"):  # Xet's storage: chunks of the large files
            self.xorbs.append(body)
            return {"was_inserted": True}
        if path in ("/v1/shards", "/v1/telemetry"):
            return {"result": 1}
        if path == f"/api/models/{REPO}/xet-write-token/main":
            return {"casUrl": self.url, "accessToken": "xet", "exp": int(time.time()) + 3600}
        if path == "/api/whoami-v2":
            return {"name": "someone", "type": "user"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/{REPO}"}
        if path == f"/api/models/{REPO}":
            return {"id": REPO, "private": not self.public}
        if path == "/api/validate-yaml":
            return {"errors": header_errors(json.loads(body)["content"]), "warnings": []}
        if "/branch/" in path:
            return None
        if "/preupload/" in path:
            names = [each["path"] for each in json.loads(body)["files"]]
            mode = {name: "lfs" if name.endswith((".safetensors", ".png")) else "regular" for name in names}
            return {"files": [{"path": name, "uploadMode": mode[name], "shouldIgnore": False} for name in names]}
        if path.endswith("/info/lfs/objects/batch"):
            each = json.loads(body)["objects"]
            upload = [{**one, "actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}} for one in each]
            return {"transfer": "basic", "objects": upload}
        assert "/commit/" in path, path
        files = {}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                oid = line["value"]["oid"]
                content = self.stored.get(oid, oid.encode())  # Xet's storage has chunks only
                assert self.xorbs or hashlib.sha256(content).hexdigest() == oid
                files[line["value"]["path"]] = content
        self.commits.append((path.rpartition("/")[2], files))
        return {"commitUrl": f"{self.url}/{REPO}/commit/abc", "commitOid": "abc", "hookOutput": ""}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub that huggingface_hub talks to, and a token for it."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            state.requests.append(f"{self.command} {path}")
            if not path.startswith("/upload/"):
                state.tokens[path] = self.headers.get("Authorization")
            word, code = next(((start, 404) for start in NEWER_XET if path.startswith(start)), state.refuse)
            refused = bool(word) and word in path
            reply = {"error": f"no, {TOKEN}"} if refused else state.answer(self.command, path, body)
            content = b"" if reply is None else json.dumps(reply).encode()
            invalid = path == "/api/validate-yaml" and reply["errors"]
            self.send_response(code if refused else 400 if invalid else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = serve  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Nothing: clients may close their connection; a wrong request shows in what arrived."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its storage has a protocol of its own
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code, stdout and stderr of `phi3v-train ARGS`, which never contain the token."""

    def run_here(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_program(make_group("phi3v-train", HELP, COMMANDS), [str(each) for each in args])
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return int(stop.value.code or 0), out, err

    return run_here


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a licence."""
    data = colour_directory(tmp_path_factory.mktemp("colours"), rows=4)
    splits = {}
    for file in data.glob("colours_*.jsonl"):
        content = file.read_bytes()
        rows = content.count(b"\n")
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        images = len(set(re.findall(rb"[\w/]+\.png", content)))
        splits[file.stem.removeprefix("colours_")] = SplitInfo(rows=rows, images=images, files={file.name: digest})
    manifest = Manifest(name="colours", task="vqa", license="cc-by-4.0", splits=splits)
    (data / "dataset.json").write_text(manifest.to_json())
    return data


def run_options(data_dir: Path, out: Path) -> list[str]:
    changes: dict[str, Any] = {"use_lora": True, "lora_rank": 4, "warmup_steps": 0, "max_steps": 1}
    return ["run", *arguments(settings_for(data_dir, out, **changes)), "--skip_validation", "--quiet"]


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not asked to upload anything."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.raises(SystemExit) as stop:
        run_program(make_group("phi3v-train", HELP, COMMANDS), run_options(data_dir, out))
    assert not stop.value.code
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_run_arrives_with_its_card_licence_and_sets(finished: Path, hub: Hub, call: Call) -> None:
    code, out, err = call("push", finished, "--repo", REPO)
    assert (code, err) == (0, "")
    ((branch, files),) = hub.commits
    assert branch == "main"
    beside = {name: (finished / name).read_bytes() for name in ("README.md", "loss.png")}
    assert files == contents(finished / "model") | beside
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files)
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert "| colours |" in files["README.md"].decode()
    assert out == f"{REPO}: {len(files)} files uploaded, {hub.url}/{REPO}/commit/abc\n"
    assert hub.tokens[f"/api/models/{REPO}/commit/main"] == f"Bearer {TOKEN}"
    assert [(made["organization"], made["name"]) for made in hub.created] == [("someone", "colours")]
    assert "visibility" not in hub.created[0]
    call("push", finished / "model", "--repo", REPO)
    assert hub.commits[1][1] == files


def test_a_merged_model_arrives_without_links_and_hidden_files(
    finished: Path, hub: Hub, call: Call, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert call("merge", finished / "model", merged)[0] == 0
    (merged / "README.md").rename(tmp_path / "README.md")
    assert "has no README.md" in call("push", merged, "--repo", REPO)[2]
    (tmp_path / "README.md").rename(merged / "README.md")
    (merged / "notes").mkdir()
    (merged / "notes" / "a.txt").write_text("kept")
    (merged / "again.txt").symlink_to(merged / "notes" / "a.txt")
    expected = contents(merged)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "b.txt").write_text("secret")
    (merged / "secret.txt").symlink_to(tmp_path / "secret.txt")
    (merged / "away").symlink_to(tmp_path / "away")
    (merged / ".env").write_text("secret")
    code, _, err = call("push", merged, "--repo", REPO, "--private", "--revision", "v2")
    assert code == 0
    assert err.splitlines() == [
        f"warning: {merged / name}: not a file of the directory, not uploaded" for name in ("away", "secret.txt")
    ]
    assert hub.commits[1] == ("v2", expected)
    assert "model.safetensors" in expected
    assert f"POST /api/models/{REPO}/branch/v2" in hub.requests
    assert hub.created[1]["visibility"] == "private"
    hub.public = True
    code, _, err = call("push", merged, "--repo", REPO, "--private")
    assert (code, len(hub.commits)) == (2, 2)
    assert err.splitlines()[2:] == [
        f"error: {REPO}: is public on the Hub; make it private there, or leave out --private"
    ]
    (merged / "config.json").rename(tmp_path / "config.json")
    (merged / "config.json").symlink_to(tmp_path / "config.json")
    code, _, err = call("push", merged, "--repo", REPO)
    assert (code, len(hub.commits)) == (2, 2)
    assert "config.json: is a link out of the directory" in err


def card(directory: Path) -> tuple[dict[str, Any], str]:
    """Header and text of a directory's card."""
    text = (directory / "README.md").read_text()
    return yaml.safe_load(text.split("---")[1]), text


def test_the_card_of_a_merged_adapter_names_base_sets_and_licence_wherever_the_adapter_comes_from(
    finished: Path, hub: Hub, call: Call, tmp_path: Path
) -> None:
    """A run's model or checkpoint, one whose run is not complete, a download from the Hub, a merged model again."""
    unfinished, download = tmp_path / "unfinished", tmp_path / "download"
    shutil.copytree(finished, unfinished)
    for name in ("README.md", "complete.json", "model"):
        path = unfinished / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(finished / "model", download)
    shutil.copy(finished / "README.md", download)
    expected = {
        "base_name": "tiny",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["phi-3-vision", "phi3v"],
        "license": "cc-by-4.0",
    }
    again = tmp_path / "2" / "merged"
    for number, source in enumerate((finished / "model", unfinished / "checkpoint-000001", download, again)):
        merged = tmp_path / str(number) / "merged"
        merged.parent.mkdir()
        assert call("merge", source, merged) == (0, f"{merged}: a model directory in fp32\n", "")
        header, text = card(merged)
        assert header == expected
        assert "\n# tiny tuned on colours\n" in text
        assert "\n| set | source | licence |\n| --- | --- | --- |\n| colours | not stated | cc-by-4.0 |\n\n" in text
        made = "a copy of the model in one number format" if source == again else "an adapter merged into its base"
        assert f"Model made by `phi3v-train merge`: {made}." in text
        assert 'AutoModelForCausalLM.from_pretrained(".", dtype="auto")' in text
        assert 'AutoProcessor.from_pretrained(".", num_crops=1)' in text
        assert "Peft" not in text
    code, _, err = call("push", merged, "--repo", REPO)
    assert (code, err) == (0, "")
    assert hub.commits[0][1] == contents(merged)


@pytest.mark.parametrize(
    "readme", ["", "---\nlicense: mit\nbase_model: other\n---\n# Other", "---\n: [\n---\n", "\xff"]
)
def test_a_card_of_others_gives_its_licence_only(finished: Path, call: Call, tmp_path: Path, readme: str) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(finished / "model", alone)
    (alone / "README.md").write_bytes(readme.encode("latin-1"))
    assert call("merge", alone, tmp_path / "merged")[0] == 0
    header, text = card(tmp_path / "merged")
    assert header.get("license") == ("mit" if "mit" in readme else None)
    assert (header["base_name"], "base_model" in header) == ("tiny", False)
    assert "\n# tiny\n" in text
    assert "## Data" not in text


@pytest.mark.parametrize("header", ["license: my own", "base_model: /home/me/models/base"])
def test_a_header_that_the_hub_refuses_is_one_sentence(
    finished: Path, hub: Hub, call: Call, tmp_path: Path, header: str
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "model/README.md").write_text(f"---\n{header}\n---\n# Mine\n")
    code, out, err = call("push", tmp_path / "model", "--repo", REPO)
    said = "the Hub refuses the header of the model card: correct the lines between --- in README.md"
    assert (code, out, err) == (2, "", f"error: {REPO}: {said}\n")
    assert hub.commits == []


@pytest.mark.parametrize(
    ("refuse", "sentence"),
    [
        (("whoami", 401), "does not accept the token (401): log in with `hf auth login`, or set HF_TOKEN"),
        (("/commit/", 403), "the token may not write there (403)"),
        (("/preupload/", 404), "the Hub has no such owner, repository or branch for this token (404)"),
        (("/upload/", 403), "the token may not write there (403)"),
        (("/commit/", 413), "the Hub refused the upload (413); check the names, the branch and the account's storage"),
        (("/commit/", 409), "the Hub refused the upload (409); run the same command again later"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    finished: Path, hub: Hub, call: Call, refuse: tuple[str, int], sentence: str
) -> None:
    hub.refuse = refuse
    code, out, err = call("push", finished, "--repo", REPO)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {REPO}: ")
    assert sentence in err
    assert hub.commits == []


def test_no_network_no_token_and_no_model_are_one_sentence(
    finished: Path, hub: Hub, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    wrong = {
        "no such directory": (tmp_path / "nowhere", REPO),
        "config.json": (tmp_path / "empty", REPO),
        "is a checkpoint": (finished / "checkpoint-000001", REPO),
        "--repo colours: expected OWNER/NAME": (finished, "colours"),
        "--repo a/b/c: expected OWNER/NAME": (finished, "a/b/c"),
        "--repo a/../b: expected OWNER/NAME": (finished, "a/../b"),
        "--repo a-/b: expected OWNER/NAME": (finished, "a-/b"),
        "--repo a/b.: expected OWNER/NAME": (finished, "a/b."),
    }
    for sentence, (model, repo) in wrong.items():
        code, out, err = call("push", model, "--repo", repo)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert sentence in err
    for token in ("hf_ü", "a b"):
        monkeypatch.setenv("HF_TOKEN", token)
        code, _, err = call("push", finished, "--repo", REPO)
        assert (code, err.count("\n"), token in err) == (2, 1, False)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "empty" / "dataset.json").write_text("{}")
    said = (
        f"error: {tmp_path / 'empty'}: is a dataset directory, not a model; give the directory of a model or an adapter"
    )
    for command in (("push", tmp_path / "empty", "--repo", REPO), ("merge", tmp_path / "empty", tmp_path / "out")):
        assert call(*command) == (2, "", f"{said}\n")
    code, _, err = call("push", finished, "--repo", REPO)
    assert (code, err) == (2, "error: there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN\n")
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, err = call("push", finished, "--repo", REPO)
    assert (code, err.count("\n")) == (2, 1)
    assert "the Hub cannot be reached" in err


def test_a_run_uploads_only_where_it_was_told_and_a_failure_does_not_lose_it(
    data_dir: Path, hub: Hub, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = run_options(data_dir, out)
    code, _, err = call(*options, "--push_to_hub", "colours")
    assert (code, out.exists()) == (2, False)
    assert "--push_to_hub colours: expected OWNER/NAME" in err
    hub.refuse = ("/commit/", 403)
    code, stdout, err = call(*options, "--push_to_hub", REPO)
    assert (code, hub.commits) == (1, [])
    assert "complete after 1 step" in stdout
    assert err.splitlines()[-1].endswith(f"the run is complete, upload it with: phi3v-train push {out} --repo {REPO}")
    assert (out / "complete.json").is_file()
    assert REPO not in (out / "config.yaml").read_text()
    hub.refuse = ("", 0)
    before = len(hub.requests)
    assert call(*options)[0] == 0
    assert len(hub.requests) == before
    code, stdout, _ = call(*options, "--push_to_hub", REPO)  # already complete: it only uploads
    assert code == 0
    assert stdout.splitlines()[-1].startswith(f"{REPO}: ")
    assert hub.commits[0][1].items() >= contents(out / "model").items()


@pytest.mark.slow
def test_of_several_processes_one_uploads_once(data_dir: Path, hub: Hub, tmp_path: Path) -> None:
    """Under torchrun, where each process runs the command; no process but rank 0 asks the Hub for anything."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *MODULE)
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    options = run_options(data_dir, tmp_path / "out")
    ((code, output, errors),) = finish([start(*launcher, *options, "--push_to_hub", REPO, fresh=True, **variables)])
    assert code == 0, errors
    assert TOKEN not in output + errors
    assert output.count(f"{REPO}: ") == 1
    once = (f"POST /api/models/{REPO}/commit/main", "POST /api/repos/create", "GET /api/whoami-v2")
    assert [hub.requests.count(each) for each in once] == [1, 1, 1]
    ((branch, files),) = hub.commits
    assert (branch, "adapter_model.safetensors" in files, "README.md" in files) == ("main", True, True)


@pytest.mark.slow
@pytest.mark.parametrize("speaks_xet", [True, False])
def test_large_files_go_to_xet_storage_where_the_hub_has_it(
    finished: Path, hub: Hub, tmp_path: Path, speaks_xet: bool
) -> None:
    """As for every user, whose huggingface_hub comes with hf_xet; in a process, as its threads stay."""
    pytest.importorskip("hf_xet")
    hub.refuse = ("", 0) if speaks_xet else ("/xet-write-token/", 404)
    variables = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "0", "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"), "HF_XET_XORB_COMPRESSION_POLICY": "none",
    }  # fmt: skip
    ((code, output, errors),) = finish([start(*MODULE, "push", finished, "--repo", REPO, fresh=True, **variables)])
    assert TOKEN not in output + errors
    if not speaks_xet:
        assert (code, output, hub.commits) == (2, "", [])
        assert errors.splitlines()[-1] == (
            f"error: {REPO}: the Hub answers, but the upload failed; run the same command again, with "
            "HF_HUB_DISABLE_XET=1 if the Hub has no Xet storage for large files"
        )
        return
    assert code == 0, errors
    ((_, files),) = hub.commits
    for path in (finished / "model" / "adapter_model.safetensors", finished / "loss.png"):
        content = path.read_bytes()
        assert files[path.name] == hashlib.sha256(content).hexdigest().encode()
        assert content[:4096] in b"".join(hub.xorbs)
    assert not [name for name in hub.requests if "/info/lfs/" in name]
