"""`python killed_rank.py RANK CALL NUMBER ARGUMENTS`: phi3v-train, whose process RANK is ended by SIGKILL.

It dies right before its NUMBER-th call of `os.CALL`; in a collective it is the others who wait.
"""

import os
import sys

from kills import kill_before

from phi3v_train.cli.app import main

if __name__ == "__main__":
    rank, call, number = sys.argv[1:4]
    if os.environ["RANK"] == rank:
        kill_before(int(number), call)
    sys.argv = ["phi3v-train", *sys.argv[4:]]
    main()
