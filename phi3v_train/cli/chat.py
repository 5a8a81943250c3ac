"""`phi3v-train chat`: questions to a model in the terminal."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.errors import UserError
from phi3v_train.cli.eval_options import Base, say_notes, with_eval_settings
from phi3v_train.config import IMAGE_OPTIONS, EvalConfig, ModelConfig
from phi3v_train.models.locate import locate
from phi3v_train.serving.images import read_file
from phi3v_train.serving.text_check import TextCheck
from phi3v_train.settings import Settings


@with_eval_settings({ModelConfig: (*IMAGE_OPTIONS, "attn", "dtype", "device"), EvalConfig: ("max_new_tokens",)})
@command_info(
    examples=[
        "phi3v-train chat runs/ucf101/model",
        "phi3v-train chat runs/ucf101/model --image frame.jpg",
        "echo 'What is this?' | phi3v-train chat tiny --image frame.jpg",
    ],
    interrupted="The conversation is not kept.",
)
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model or adapter directory, Hub id, `tiny:FAMILY`.")],
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Image of the first question; may be given several times.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0: the most likely answer.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling, with a temperature.")] = None,
    base: Base = None,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Ask a model questions about images in the terminal; answers appear as they are generated.

    Each line is a question. /image FILE adds an image to the next question, /new starts over, /history shows the
    conversation, /quit or Ctrl-D ends it; Ctrl-C stops an answer, and at the prompt the conversation. With lines
    from a file or a pipe the exit code is 1 if one of them was refused.
    """
    waiting = [(path, read_file(path)) for path in image or ()]
    files = locate(model, base=base, called="MODEL")
    try:
        TextCheck(files.family.tokens).check(system, num_images=0)
    except UserError as error:
        raise UserError(f"--system: {error}") from None
    if not quiet:
        print(f"loading {model}", file=sys.stderr)
    from phi3v_train.serving.load import load
    from phi3v_train.serving.request import Sampling
    from phi3v_train.serving.terminal import Conversation, talk

    served = load(files, settings.config.model, max_batch=1)
    say_notes(served.notes, quiet=quiet)
    sampling = Sampling(settings.config.eval.max_new_tokens, temperature, seed=seed)
    conversation = Conversation(served.answerer, sampling, system=system, waiting=waiting)
    if sys.stdin.isatty() and not quiet:
        print(f"{served.name}: /image FILE, /new, /history, /quit", file=sys.stderr)
    num_refused = talk(conversation)
    served.answerer.close()
    if num_refused and not sys.stdin.isatty():
        raise typer.Exit(1)


command = make_command(chat, name="chat")
