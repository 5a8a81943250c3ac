"""Guesses the mapping of tables with common column names, so that `convert table` needs no `--map`."""

import json
from collections.abc import Sequence

from phi3v_data.errors import UserError
from phi3v_data.messages import join_words, shown

IMAGES = (
    "image", "images", "img", "imgs", "image_path", "image_paths", "img_path", "image_file", "image_name", "picture",
    "photo", "file_name", "filename", "file", "path",
)  # fmt: skip
QUESTIONS = ("question", "query", "prompt", "instruction", "user", "input", "text")
ANSWERS = ("answer", "answers", "label", "response", "output", "target", "assistant", "caption")
SPLITS = ("split",)
IDS = ("id", "question_id", "questionid", "qid", "uid", "index")
GROUPS = ("group",)

HELP = "docs/converters.md shows a mapping file, and phi3v-data schema table-map lists its keys"


def guess_map(columns: Sequence[str]) -> tuple[str, str]:
    """Guess a mapping file (as JSON); also return a message that lists the columns used and not used.

    Raises:
        UserError: no column is known to contain the images, or the questions.
    """
    found = {name: _first(columns, names) for name, names in _ROLES.items()}
    for role, names in (("images", IMAGES), ("user", QUESTIONS)):
        if not found[role]:
            raise UserError(
                f"without --map the table needs a column {', '.join(names[:3])}, ..., and has "
                f"{join_words(columns, 5, each=shown)}; {HELP}"
            )
    mapping: dict[str, object] = {"images": found["images"], "user": f"{{{found['user']}}}"}
    if answer := found["assistant"]:
        mapping["assistant"] = f"{{{answer}}}"
        mapping["answers"] = answer
    mapping |= {role: found[role] for role in ("split", "id", "group") if found[role]}
    used = {name for name in found.values() if name}
    unused = [name for name in columns if name not in used]
    words = f"columns: images from {shown(found['images'])}, question from {shown(found['user'])}"
    words += f", answer from {shown(answer)}" if answer else ", no answer"
    words += "".join(f", {role} from {shown(found[role])}" for role in ("split", "id", "group") if found[role])
    if unused:
        words += f"; not used: {join_words(unused, 8, each=shown)}"
    return json.dumps(mapping), words


_ROLES = {"images": IMAGES, "user": QUESTIONS, "assistant": ANSWERS, "split": SPLITS, "id": IDS, "group": GROUPS}


def _first(columns: Sequence[str], names: Sequence[str]) -> str:
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in names if name in lowered), "")
