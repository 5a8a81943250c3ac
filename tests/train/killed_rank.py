"""`python killed_rank.py RANK CALL NUMBER ARGUMENTS`: phi3v-train, whose process RANK is ended by SIGKILL.

It dies right before its NUMBER-th call of `os.CALL`; in a collective it is the others who wait.
"""

import os
import signal
import sys
from typing import Any

from phi3v_train.cli.app import main

if __name__ == "__main__":
    rank, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
    original = getattr(os, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    if os.environ["RANK"] == rank:
        setattr(os, name, counted)
    sys.argv = ["phi3v-train", *sys.argv[4:]]
    main()
