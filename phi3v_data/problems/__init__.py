"""The catalogue of problem codes: the meaning of each, why it hurts a training run, an example, and the fix.

`phi3v-data explain CODE` and docs/problems.md are printed from here; the suite builds every example and validates it.
"""

from phi3v_data.problems.example import Bytes, Content, Example, ImageFile, Link, Repeat, Text, write_example
from phi3v_data.problems.formats import FORMATS
from phi3v_data.problems.images import IMAGES
from phi3v_data.problems.model import GROUPS, Problem
from phi3v_data.problems.rows import ROWS
from phi3v_data.problems.splits import SPLITS
from phi3v_data.problems.texts import RUNS, TEXT, TOKENS

PROBLEMS: dict[str, Problem] = {
    problem.code: problem for problem in (*ROWS, *IMAGES, *TEXT, *TOKENS, *SPLITS, *FORMATS, *RUNS)
}

__all__ = [
    "GROUPS",
    "PROBLEMS",
    "Bytes",
    "Content",
    "Example",
    "ImageFile",
    "Link",
    "Problem",
    "Repeat",
    "Text",
    "write_example",
]
