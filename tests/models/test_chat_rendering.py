"""Chat templates of model directories are rendered within limits, by a child that ends with its process."""

import os
import select
import signal
import subprocess
import sys

import pytest

from phi3v_train.models import chat_rendering
from phi3v_train.models.chat_rendering import TemplateError, render

HELLO = [{"role": "user", "content": "hello"}]
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TOO_MUCH = "it needs over 2 s or 256 MB for one conversation"


def rendered(template: str) -> str:
    return render(template, HELLO, generation=True, names={"bos_token": "<s>"})


def test_a_template_is_rendered_with_its_variables() -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
    assert rendered(template) == "<s>hello>"
    assert render(template, [{"role": "user", "content": "Zoë \ud800"}], generation=False, names={}) == "Zoë \ud800"


@pytest.mark.parametrize(
    "template",
    [
        LOOPS,
        "{{ 'a' * 10**10 }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ '%1000000000d' % 3 }}",
        "{{ 'x'|center(10**9) }}",
        "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a' * 10**8 }}",
    ],
)
def test_a_template_that_never_ends_or_fills_the_memory_is_refused(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(template)
    assert str(caught.value) == TOO_MUCH
    assert rendered("{{ messages[0].content }}") == "hello", "the next one is rendered"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{% include '/etc/passwd' %}", "no loader for this environment specified"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ ", "unexpected 'end of template'"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth exceeded"),
    ],
)
def test_what_a_template_raises_is_the_reason(template: str, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        rendered(template)
    assert str(caught.value).startswith(reason)


def test_a_template_that_took_too_long_is_not_rendered_again() -> None:
    template = "{# again #}" + LOOPS
    for _ in range(2):
        with pytest.raises(TemplateError, match=TOO_MUCH):
            rendered(template)
        assert chat_rendering._current is None, "no child was started for the second time"


def test_an_interrupted_request_does_not_give_its_answer_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered("{{ messages[0].content }}")
    renderer = chat_rendering._current
    assert renderer is not None
    pipe = renderer.pipe

    class Interrupted:
        """A pipe from which Ctrl-C keeps the answer."""

        def recv_bytes(self, limit: int) -> bytes:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> object:
            return getattr(pipe, name)

    monkeypatch.setattr(renderer, "pipe", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        rendered("first")
    assert rendered("second") == "second"


CHILD = f"""
import os
from phi3v_train.models import chat_rendering
chat_rendering.render("x", {HELLO!r}, generation=True, names={{}})
print(chat_rendering._current.child, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""


def test_the_child_ends_with_a_process_that_is_killed() -> None:
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr
    try:
        ended = os.pidfd_open(int(run.stdout))
    except ProcessLookupError:
        return
    try:
        assert select.select([ended], [], [], 60)[0] == [ended]
    finally:
        os.close(ended)
