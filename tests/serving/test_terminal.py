"""The chat in the terminal, line by line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import Cli, make_cli
from served import BLUE, RED, question, small_answerer

from phi3v_data.errors import UserError
from phi3v_train.cli.app import main
from phi3v_train.serving.request import Sampling
from phi3v_train.serving.terminal import Conversation, obey, talk


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_command_answers_each_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    answerer = small_answerer()
    asked = answerer.submit(answerer.encode(*question("What colour?", RED)), Sampling(6))
    expected = "".join(piece.text for piece in asked)
    answerer.close()
    say(monkeypatch, "What colour?", "", "Sure?", "/history", "/quit", "never asked")
    code, out, _ = cli(
        "chat", "tiny", "--num_crops", "1", "--max_new_tokens", "6", "--image", tmp_path / "red.png", main=main
    )
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == expected
    assert lines[2:] == ["you: [1 image] What colour?", f"model: {expected}", "you: Sure?", f"model: {lines[1]}"]


def test_an_error_in_a_line_does_not_end_the_conversation(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    say(monkeypatch, f"/image {tmp_path / 'no.png'}", f"/image {tmp_path / 'text.png'}", "/image", "/jump", "Hello")
    code, out, err = cli("chat", "tiny", "--num_crops", "1", "--max_new_tokens", "4", main=main)
    assert code == 1
    assert err.splitlines() == [
        "loading tiny",
        f"error: {tmp_path / 'no.png'}: No such file or directory",
        f"error: {tmp_path / 'text.png'}: is not an image (a text file)",
        "error: /image needs the path of a file",
        "error: no command /jump; the commands are /image FILE, /new, /history, /quit",
    ]
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("typed", [
    "/image {folder}/my red.png", "/image '{folder}/my red.png'", '/image "{folder}/my red.png"',
    "/image {folder}/my\\ red.png",
])  # fmt: skip
def test_a_path_is_taken_as_terminals_write_a_dropped_file(tmp_path: Path, typed: str) -> None:
    RED.save(tmp_path / "my red.png")
    conversation = Conversation(None, Sampling(4))  # type: ignore[arg-type]
    obey(conversation, typed.format(folder=tmp_path))
    assert [path for path, _ in conversation.waiting] == [tmp_path / "my red.png"]


@pytest.mark.parametrize("path", ["~no-such-user/a.png", "a\0b", "it's.png", "'a.png"])
def test_a_path_that_cannot_be_is_one_sentence(path: str) -> None:
    with pytest.raises(UserError, match=r"No such file|is not the path of a file"):
        obey(Conversation(None, Sampling(4)), f"/image {path}")  # type: ignore[arg-type]


def test_a_line_that_is_not_text_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nHello\n"), encoding="utf-8"))
    code, out, err = cli("chat", "tiny", "--num_crops", "1", "--max_new_tokens", "4", main=main)
    assert (code, err) == (1, "loading tiny\nerror: the text has a lone surrogate (\\udce9) at character 3\n")
    assert len(out.splitlines()) == 1


def test_images_belong_to_the_next_question_and_new_forgets_all(tmp_path: Path) -> None:
    BLUE.save(tmp_path / "blue.png")
    RED.save(tmp_path / "red.png")
    answerer = small_answerer()
    conversation = Conversation(answerer, Sampling(4), system="Be terse.")
    written: list[str] = []
    obey(conversation, f"/image {tmp_path / 'blue.png'}")
    obey(conversation, f"/image {tmp_path / 'red.png'}")
    conversation.ask("Which is red?", written.append)
    conversation.ask("Sure?", written.append)
    assert [len(turn.images) for turn in conversation.turns] == [2, 0]
    assert conversation.history()[0] == "system: Be terse."
    obey(conversation, "/new")
    assert conversation.history() == ["system: Be terse."]
    answerer.close()


def test_a_refused_question_is_not_part_of_the_conversation() -> None:
    answerer = small_answerer()
    conversation = Conversation(answerer, Sampling(4))
    with pytest.raises(UserError, match="image_1"):
        conversation.ask("<|image_1|>?", print)
    with pytest.raises(UserError, match=r"^the text has '<\|end\|>', a control token of the model: take it out$"):
        conversation.ask("x<|end|>", print)
    assert conversation.turns == []
    answerer.close()


def test_a_model_that_is_not_there_is_called_as_it_was_given(cli: Cli, tmp_path: Path) -> None:
    for command in ("chat", "serve"):
        code, out, err = cli(
            command, "./nosuch", "--quiet", *(["--port", "0"] if command == "serve" else []), main=main
        )
        assert (code, out) == (2, "")
        assert err.startswith("error: MODEL ./nosuch: no such directory; give a model directory, ")
        program = (
            f"import sys; sys.argv = ['phi3v-train', '{command}', './nosuch', '--quiet']\n"
            "from phi3v_train.cli.app import main\n"
            "try: main()\n"
            "finally: print('torch' in sys.modules, 'fastapi' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        # said before the seconds of importing them
        assert (done.returncode, done.stdout) == (2, "False False\n"), done.stderr
    (tmp_path / "dataset.json").write_text("{}")
    code, _, err = cli("serve", tmp_path, "--quiet", "--port", "0", main=main)
    assert (code, f"{tmp_path}: is a dataset directory, not a model; " in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("chat", "tiny", "--system", "x<|end|>"), "error: --system: the text has '<|end|>', a control token of the "),
        (("run", "--data_dir", "nowhere", "--output_dir", "out"), "error: nowhere: no such directory"),
        (("plan", "--data_dir", "nowhere"), "error: nowhere: no such directory"),
        (
            ("run", "--data_dir", ".", "--model_name_or_path", "./nosuch"),
            "error: --model_name_or_path ./nosuch: no",
        ),
        (
            ("plan", "--data_dir", ".", "--model_name_or_path", "./nosuch"),
            "error: --model_name_or_path ./nosuch: no",
        ),
    ],
)
def test_a_mistake_that_needs_no_model_is_told_before_torch_is_loaded(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    program = (
        f"import sys; sys.argv = ['phi3v-train', *{words!r}]\n"
        "from phi3v_train.cli.app import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.startswith(said)


def test_a_key_or_a_page_that_clients_cannot_send_is_told_before_a_model_is_loaded(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = cli("serve", "nosuch", "--origins", "example.com", main=main)
    assert (code, err) == (
        2, "error: --origins example.com: expected SCHEME://HOST or SCHEME://HOST:PORT, as https://example.com\n"
    )  # fmt: skip
    for key in ("s\u00e9cret", "a\nb", "\udcff"):
        monkeypatch.setenv("PHI3V_API_KEY", key)
        code, _, err = cli("serve", "nosuch", main=main)
        assert (code, err) == (
            2, "error: PHI3V_API_KEY: a key has letters, digits and signs of ASCII, which every client can send\n"
        )  # fmt: skip


def test_ctrl_c_keeps_what_there_is_of_an_answer() -> None:
    answerer = small_answerer()
    conversation = Conversation(answerer, Sampling(4000, temperature=2.0, seed=1))
    written: list[str] = []

    def stop(text: str) -> None:
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    conversation.ask("Hello", stop)
    assert conversation.turns[0].assistant == "".join(written[:2])
    assert written[-1] == " [stopped]"
    conversation.sampling = Sampling(4)
    conversation.ask("And?", written.append)
    assert len(conversation.turns) == 2
    answerer.close()


def test_escape_codes_of_an_answer_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Echo(Conversation):
        def ask(self, question: str, write: object) -> None:
            write("\x1b[31m" + question)  # type: ignore[operator]

    say(monkeypatch, "red")
    talk(Echo(None, Sampling()))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "\\x1b[31mred\n"
