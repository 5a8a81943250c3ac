"""`phi3v-data`: the table of its commands."""

import atexit
import gc
import os
from collections.abc import Mapping

from phi3v_data.cli.base import CommandSpec, make_group, run

COMMANDS = {
    "convert": CommandSpec("phi3v_data.cli.convert:command", "Turn a dataset into a conversations directory."),
    "import": CommandSpec("phi3v_data.cli.import_rows:command", "Turn a chat file of another tool into a directory."),
    "validate": CommandSpec("phi3v_data.cli.validate:validate", "Check a directory and report every problem in it."),
    "explain": CommandSpec("phi3v_data.cli.explain:explain", "Explain a problem code: meaning, reason, example, fix."),
    "schema": CommandSpec("phi3v_data.cli.schema:schema", "Print the JSON Schema of a file, or write all of them."),
    "stats": CommandSpec("phi3v_data.cli.stats:stats", "Count a set: labels, lengths, image sizes, duplicates."),
    "preview": CommandSpec("phi3v_data.cli.preview:preview", "Show a row in the terminal, or a gallery as a page."),
    "card": CommandSpec("phi3v_data.cli.card:card", "Write a dataset card, DIR/README.md."),
    "clean": CommandSpec("phi3v_data.cli.clean:clean", "Copy the valid rows of a set; list what was left out."),
    "split": CommandSpec("phi3v_data.cli.split:split", "Divide a set into splits without leaks."),
    "merge": CommandSpec("phi3v_data.cli.merge:merge", "Join several sets into one."),
    "store": CommandSpec("phi3v_data.cli.store:store", "Copy a set with its images as files, or in shards."),
    "export": CommandSpec("phi3v_data.cli.export:export", "Write a set in the format of another tool."),
    "converters": CommandSpec("phi3v_data.cli.converters:converters", "List the converters and their options."),
}

HELP = "Prepare and validate conversations directories: images and video frames with questions and answers."

START_OBJECTS = 100_000
"""Objects before the first collection of garbage: about as many as the imports of a command make, all of which stay."""


def main() -> None:
    """Entry point of the console script."""
    start_lightly()
    run(make_group("phi3v-data", HELP, COMMANDS))


def start_lightly() -> None:
    """Leave out what would take a third of the CPU time of a short run.

    Garbage is not looked for among what imports make, neither at the start nor at the exit. NumPy's OpenBLAS starts no
    thread per core when it is imported: nothing here multiplies matrices.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    usual = gc.get_threshold()
    if usual[0] >= START_OBJECTS:
        return

    def restore(phase: str, info: Mapping[str, int]) -> None:
        gc.callbacks.remove(restore)
        gc.set_threshold(*usual)

    gc.callbacks.append(restore)
    gc.set_threshold(START_OBJECTS, *usual[1:])
    atexit.register(gc.freeze)
