"""Train several runs one after another in one process of a group: `python many_runs.py RUNS.json`, RANK and so on set.

RUNS.json is a list of settings. No run draws a plot. Every run meets at a port of its own, MASTER_PORT and those after
it. With `little_memory` the machine seems to have a megabyte. It ends as the command does: gloo's threads may abort an
interpreter that shuts down.
"""

import json
import os
import sys
from pathlib import Path

from phi3v_train.cli.app import leave
from phi3v_train.models import machine
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training import session

if __name__ == "__main__":
    session.draw_loss = lambda *args, **kwargs: None
    first = int(os.environ["MASTER_PORT"])
    for number, settings in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["MASTER_PORT"] = str(first + number)
        found = machine.available_memory
        if settings.pop("little_memory", False):
            machine.available_memory = lambda: 1_000_000
        run(resolve(settings), quiet=True)
        machine.available_memory = found
    leave(SystemExit(0))
