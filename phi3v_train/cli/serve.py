"""`phi3v-train serve`: an OpenAI-compatible server for one model, with a page to try it."""

import os
import sys
from typing import Annotated

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_data.messages import counted, escaped
from phi3v_train.cli.eval_options import Base, say_notes, with_eval_settings
from phi3v_train.config import IMAGE_OPTIONS, ModelConfig
from phi3v_train.models.locate import locate
from phi3v_train.serving.address import KEY_VARIABLE, LOOPBACK, bind, host_name, require_key, web_origin
from phi3v_train.settings import Settings


@with_eval_settings({ModelConfig: (*IMAGE_OPTIONS, "attn", "dtype", "device")})
@command_info(
    examples=[
        "phi3v-train serve runs/ucf101/model",
        "phi3v-train serve tiny:qwen3_vl --port 8001",
        f"{KEY_VARIABLE}=secret phi3v-train serve merged --host 0.0.0.0 --hosts gpu.example.com",
    ],
    interrupted="The server had not started.",
)
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model or adapter directory, Hub id, `tiny:FAMILY`.")],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 for any free one.")] = 8000,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the model for clients. Default: MODEL.")] = "",
    hosts: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name by which clients call this server; may be given several times."),
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web page that may ask, https://example.com; may be given several times."),
    ] = None,
    allow_url: Annotated[
        bool, typer.Option("--allow_url", help="Fetch images from public http and https URLs.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, metavar="N", help="Conversations answered together.")] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Conversations that may wait; more are refused with 429.")
    ] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Longest answer; also the default.")] = 1024,
    max_images: Annotated[int, typer.Option(min=0, metavar="N", help="Images in one conversation.")] = 16,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens before the answer, those of images included.")
    ] = 16_384,
    grace_seconds: Annotated[
        int, typer.Option(min=0, metavar="N", help="Time for answers that were begun, after Ctrl-C or SIGTERM.")
    ] = 30,
    base: Base = None,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Serve a model over HTTP, as OpenAI's API: /v1/chat/completions and /v1/models, /health, /metrics, a page at /.

    Answers are greedy unless a request has a temperature. Images come as data URLs; URLs are fetched with --allow_url,
    never files or private addresses. On another address than loopback clients need a key, which is taken from the
    environment variable PHI3V_API_KEY.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    require_key(host, key)
    pages = tuple(map(web_origin, origins or ()))
    with bind(host, port) as listening:
        files = locate(model, base=base, called="MODEL")
        if not quiet:
            print(f"loading {model}", file=sys.stderr)
        from phi3v_train.serving.app import ServerSettings, make_app
        from phi3v_train.serving.load import load
        from phi3v_train.serving.protocol import Limits
        from phi3v_train.serving.run_server import serve as run

        where = listening.getsockname()
        served = load(files, settings.config.model, max_batch=max_batch, max_waiting=max_waiting)
        say_notes(served.notes, quiet=quiet)
        names = (*map(host_name, hosts or ()), *LOOPBACK) if host in LOOPBACK or hosts else ()
        limits = Limits(new_tokens=max_new_tokens, images=max_images, prompt_tokens=max_prompt_tokens)
        name = escaped(name or served.name)  # a directory's name may be other than text
        app = make_app(
            served.answerer,
            ServerSettings(name, api_key=key, hosts=names, origins=pages, allow_url=allow_url, limits=limits),
        )
        address = f"[{where[0]}]" if ":" in where[0] else where[0]
        computes = f"{served.compute.dtype.value} on {served.compute.device.value}"
        print(f"http://{address}:{where[1]}  {name}, {computes}")
        sys.stdout.flush()
        number, num_cut = run(app, served.answerer, listening, grace=grace_seconds)
    if num_cut:
        told = f"{counted(num_cut, 'answer')} {'was' if num_cut == 1 else 'were'} cut off."
    else:
        told = "Answers that were begun have been completed."
    print(f"Stopped. {told}", file=sys.stderr, flush=True)
    if num_cut:
        os._exit(128 + number)  # threads may still be in the model or in a download, and nothing waits for them
    raise typer.Exit(128 + number)


command = make_command(serve, name="serve")
