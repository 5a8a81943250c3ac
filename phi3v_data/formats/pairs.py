"""Rows of one question and one answer, with the earlier turns in a column of pairs.

{"query": "What is it?", "response": "A cat.", "history": [["Hello.", "Hi."]], "system": "Be terse."}
{"instruction": "Translate.", "input": "Katze", "output": "cat"}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3v_data.formats.chat import Fault, Role
from phi3v_data.messages import shown

Line = tuple[Role, str, str, int]
"""Role, text, field and weight of a message."""


def read_pairs(
    row: Mapping[str, Any], query: Sequence[str], response: str, history: str, faults: list[Fault]
) -> list[Line]:
    """The messages of a row.

    Args:
        query: columns of the question; several are joined by line ends, as the instruction and its input.
        response: column of the answer.
        history: column of the pairs before, or ''.
    """
    lines: list[Line] = []
    earlier = row.get(history) if history else None
    for number, pair in enumerate(earlier if isinstance(earlier, list | tuple) else ()):
        where = f"{history}[{number}]"
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            lines += [("user", pair[0], f"{where}[0]", 1), ("assistant", pair[1], f"{where}[1]", 1)]
        else:
            faults.append(Fault("wrong-type", where, f"a pair is {shown(pair)}, not a question and an answer"))
    if earlier and not isinstance(earlier, list | tuple):
        faults.append(Fault("wrong-type", history, f"'{history}' is {shown(earlier)}, not an array of pairs"))
    texts = []
    for column in query:
        value = row.get(column)
        if isinstance(value, str):
            texts += [value] if value else []
        elif value is not None:
            faults.append(Fault("wrong-type", column, f"'{column}' is {shown(value)}, not a text"))
    lines.append(("user", "\n".join(texts), query[0] if query else "", 1))
    answer = row.get(response)
    if isinstance(answer, str):
        lines.append(("assistant", answer, response, 1))
    elif answer is None:
        faults.append(Fault("missing-field", response, f"'{response}' is missing"))
    else:
        faults.append(Fault("wrong-type", response, f"'{response}' is {shown(answer)}, not a text"))
    return lines
