"""Problems of single lines of a JSONL file."""

from phi3v_data.problems.example import Bytes, Example, ImageFile, Repeat, Text, row
from phi3v_data.problems.model import Problem

_GOOD = row("a")


def _train(*lines: str) -> Example:
    return Example({"train.jsonl": Text("".join(lines))})


ROWS = (
    Problem(
        "json-syntax",
        "rows",
        "error",
        "a line is not JSON",
        "The line cannot be read as one JSON value. Usual causes: a file that was cut off, an object spread "
        "over several lines, two objects on one line, single quotes, a trailing comma, a raw line end or tab "
        "inside a string.",
        "The row is lost. A loader that skips it trains on less data than you think; one that does not skip it fails "
        "at this line, perhaps hours into the run.",
        _train(_GOOD, '{"id": "b", "source": "example", "conversations": [\n'),
        "Write each row with a JSON library, one object per line. If the file was cut off, write it again.",
    ),
    Problem(
        "json-not-object",
        "rows",
        "error",
        "a line is JSON, but not an object",
        "A row is a JSON object in braces, not an array, a string, a number or null. A file that is one large JSON "
        "array gives this error.",
        "The line contains no sample to train on.",
        _train(_GOOD, '["a", "b"]\n'),
        "Write one object per line. `phi3v-data import` reads files of other formats, including JSON arrays.",
    ),
    Problem(
        "invalid-utf8",
        "rows",
        "error",
        "a line contains bytes that are not UTF-8",
        "JSON files are UTF-8. Text saved as latin-1 or cp1252 breaks at the first accented letter.",
        "Loaders stop at the byte, or replace it and train on damaged words.",
        Example({"train.jsonl": Bytes(_GOOD.encode() + row("b", assistant="caf#").encode().replace(b"#", b"\xe9"))}),
        "Convert the file: `iconv -f cp1252 -t utf-8 train.jsonl`.",
    ),
    Problem(
        "file-encoding",
        "rows",
        "error",
        "a JSONL file is not UTF-8 text: UTF-16, gzip or another kind",
        "The first bytes of the file show its type. Spreadsheets and PowerShell write UTF-16; a download may still be "
        "compressed.",
        "None of its rows can be read; a loader fails at the first byte.",
        Example({"train.jsonl": Text(row("a")), "val.jsonl": Bytes(row("b").encode("utf-16"))}),
        "Decompress it (`gunzip val.jsonl.gz`) or convert it: `iconv -f utf-16 -t utf-8 val.jsonl`.",
    ),
    Problem(
        "bom",
        "rows",
        "warning",
        "a line starts with a byte order mark",
        "Some editors and spreadsheets put the three bytes EF BB BF in front of a file. This package ignores them.",
        "Many other JSON readers reject the first line, so the directory works here and fails elsewhere.",
        Example({"train.jsonl": Bytes(b"\xef\xbb\xbf" + _GOOD.encode())}),
        "Save as UTF-8 without signature, or write the directory again with `phi3v-data clean`.",
    ),
    Problem(
        "blank-line",
        "rows",
        "warning",
        "a line is blank",
        "The line contains only white space. It is ignored and not counted as a row.",
        "It is harmless here, but tools that count lines count it as a row, and strict JSONL readers fail on it.",
        _train(_GOOD, "\n", row("b", user="Is it red?")),
        "Remove it, or write the directory again with `phi3v-data clean`.",
    ),
    Problem(
        "duplicate-key",
        "rows",
        "error",
        "an object has the same key twice",
        "JSON readers keep one of the two values and drop the other silently; which one is kept depends on the reader.",
        "One of the two values is lost without an error.",
        _train(
            _GOOD,
            '{"id": "b", "source": "example", "source": "other", "conversations": '
            '[{"images": [], "user": "Is it red?", "assistant": "Yes."}]}\n',
        ),
        "Give each key once; turns belong into one `conversations` array.",
    ),
    Problem(
        "non-finite-number",
        "rows",
        "error",
        "a number is NaN or infinite",
        "NaN and Infinity are valid in Python but not in JSON; a number such as 1e999 is too large for a double.",
        "Strict readers reject the line; others propagate NaN into averages.",
        _train(
            _GOOD,
            '{"id": "b", "source": "example", "conversations": [{"images": [], "user": "How many?", '
            '"assistant": "Two."}], "meta": {"score": NaN}}\n',
        ),
        "Write null, or leave the key out.",
    ),
    Problem(
        "missing-field",
        "rows",
        "error",
        "a key that every row or turn needs is missing",
        "A row has `id`, `source` and `conversations`; a turn has `user` and `assistant`.",
        "Without a question or an answer there is nothing to train on, and without an id predictions cannot be matched "
        "to rows.",
        _train(_GOOD, '{"id": "b", "source": "example", "conversations": [{"images": [], "user": "Is it red?"}]}\n'),
        "Add the key. In a split without answers, `assistant` is empty and dataset.json says `labelled: false`.",
    ),
    Problem(
        "unknown-field",
        "rows",
        "error",
        "a key that the format does not have",
        "Rows and turns allow no other keys: a misspelt key would otherwise be ignored, and its value with it.",
        "A misspelt `image` instead of `images` trains a vision model without images.",
        _train(_GOOD, row("b", user="Is it red?").replace('"images"', '"image"')),
        "Correct the spelling; put your own fields into the row's `meta`.",
    ),
    Problem(
        "wrong-type",
        "rows",
        "error",
        "a value has the wrong type, or does not fit the rest of its row",
        'Values are never converted: "3" is not a number and 3 is not a string. `meta` is flat. `image_offsets` has '
        "one integer per image, non-decreasing and within the text. `weight` is 0 or 1.",
        "Guessing what was meant would change the data silently.",
        _train(_GOOD, row("b", user="Is it red?").replace('"b"', "7")),
        "Write the type that the format requires; see docs/format.md.",
    ),
    Problem(
        "empty-text",
        "rows",
        "error",
        "an answer, a question or an id is empty",
        "The answer contains only white space in a split that has answers; or a turn has neither text nor images; or "
        "the id is empty.",
        "The model learns to say nothing.",
        _train(_GOOD, row("b", user="Is it red?", assistant=" ")),
        "Fill it in or drop the row. A split without answers (a public test set) has `labelled: false` in "
        "dataset.json.",
    ),
    Problem(
        "image-only-turn",
        "rows",
        "warning",
        "a turn has images and no text",
        "`user` is empty or contains only white space, and `images` is not empty. A turn with neither is `empty-text`, "
        "an error.",
        "This may be intended (captions without an instruction). More often a question was lost: its column was not "
        "mapped, or it is in another file. The model then learns to answer a question that it was never asked.",
        Example(
            {
                "train.jsonl": Text(row("a", "a.png") + row("b", "b.png", user=" ")),
                "images/a.png": ImageFile(64, 48),
                "images/b.png": ImageFile(64, 48, seed=1),
            }
        ),
        "Write the question or an instruction into `user`, such as `Describe the image.`; `user` in a table map and "
        "the option `--prompt` of some converters do so for a whole set. If it is intended, leave it as it is.",
    ),
    Problem(
        "no-turns",
        "rows",
        "error",
        "a row has no turns",
        "`conversations` is an empty array.",
        "The row contains no question and no answer.",
        _train(_GOOD, '{"id": "b", "source": "example", "conversations": []}\n'),
        "Drop the row, or find out what was lost when it was written.",
    ),
    Problem(
        "nothing-trained",
        "rows",
        "error",
        "all turns of a row have weight 0",
        "`weight` 0 on a turn makes its answer context only: none of its tokens is trained, and evaluation does not "
        "ask for it. At least one turn of a row has weight 1, which is also the value of a turn without `weight`.",
        "The row costs memory and time in every epoch and teaches nothing; in a split for evaluation it is never "
        "scored.",
        _train(_GOOD, row("b", user="Is it red?").replace('"A shape."', '"A shape.", "weight": 0')),
        "Leave out `weight` at the answers to be learned, or drop the row.",
    ),
    Problem(
        "duplicate-id",
        "rows",
        "error",
        "an id is already used by an earlier row",
        "Ids are unique within a directory, across all splits and shards.",
        "Predictions are matched to rows by id: two rows with the same id get each other's scores.",
        _train(_GOOD, row("a", user="Is it red?")),
        "`phi3v-data merge DIR OUT` gives such rows new ids; `phi3v-data clean` keeps only the first.",
    ),
    Problem(
        "line-too-long",
        "rows",
        "error",
        "a line is longer than 64 MB",
        "The line is skipped; the rest of the file is read. Lines of this size usually contain images as base64 text.",
        "Every reader would have to keep such a line in memory, several times over.",
        Example({"train.jsonl": Repeat(_GOOD + '{"id": "b", "source": "', "x", 64 << 20, '", "conversations": []}\n')}),
        "Store images under images/ and refer to them by path; `phi3v-data import openai` does so for data URLs.",
    ),
)
