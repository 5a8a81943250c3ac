"""`phi3v-train`: the table of its commands."""

import logging
import os
import sys

from phi3v_data.cli.base import CommandSpec, make_group, run

COMMANDS = {
    "run": CommandSpec("phi3v_train.cli.run:command", "Fine-tune on a conversations directory."),
    "plan": CommandSpec(
        "phi3v_train.cli.plan:command", "Show what a run would do, and which methods fit this machine."
    ),
    "recipes": CommandSpec("phi3v_train.cli.recipes:recipes", "List published settings with their results."),
    "models": CommandSpec("phi3v_train.cli.models:models", "List the model families that can be trained."),
    "eval": CommandSpec("phi3v_train.cli.eval:command", "Score a model on a split, or a file of predictions."),
    "predict": CommandSpec("phi3v_train.cli.predict:command", "Answer a split, for a submission for instance."),
    "inspect": CommandSpec(
        "phi3v_train.cli.inspect:inspect", "Show samples as the model sees them: which tokens are trained."
    ),
    "merge": CommandSpec("phi3v_train.cli.merge:merge", "Merge an adapter into its base model."),
    "push": CommandSpec("phi3v_train.cli.push:push", "Upload a model or an adapter to the Hub, with its card."),
    "chat": CommandSpec("phi3v_train.cli.chat:command", "Ask a model questions about images in the terminal."),
    "serve": CommandSpec("phi3v_train.cli.serve:command", "Serve a model over HTTP, as OpenAI's API, with a page."),
    "schema": CommandSpec("phi3v_train.cli.schema:schema", "Print the JSON Schema of each file of a run."),
}

ALIASES = {"train": "run"}

HELP = "Fine-tune vision-language models on conversations directories."


def main() -> None:
    """Entry point of the console script."""
    # transformers imports DeepSpeed wherever it is installed, and its logger writes to stdout, among our results.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        run(make_group("phi3v-train", HELP, COMMANDS, ALIASES))
    except SystemExit as end:
        leave(end)


def leave(end: SystemExit) -> None:
    """End this process. One of several ends at once, without taking the interpreter down: gloo's threads may still hold
    the tensors of the last exchange, and letting go of them then would abort a process that has done all its work.
    """
    if "RANK" not in os.environ:
        raise end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(end.code if isinstance(end.code, int) else 1)
