"""Train several runs one after another in one process of a group: `python many_runs.py RUNS.json`, RANK and so on set.

RUNS.json is a list of settings. Every run meets at a port of its own, MASTER_PORT and those after it.
"""

import json
import os
import sys
from pathlib import Path

from phi3v_train.run import run
from phi3v_train.settings import resolve

if __name__ == "__main__":
    first = int(os.environ["MASTER_PORT"])
    for number, settings in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["MASTER_PORT"] = str(first + number)
        run(resolve(settings), quiet=True)
