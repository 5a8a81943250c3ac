"""The messages that Qwen's own reading file makes of exports. Run by consumers.py and bad_rows.py.

The file is taken from a clone of QwenLM/Qwen3-VL outside of the project; only its function that builds messages is run,
as its search for answers needs the numbers of the released tokenizer.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from reading import Row, digest, run

source, out, *exports = map(os.path.abspath, sys.argv[1:])
for name, contents in (("data_list", None), ("rope2d", ("get_rope_index_25", "get_rope_index_2", "get_rope_index_3"))):
    module = ModuleType(f"qwenvl.{name}")
    for function in contents or ():
        setattr(module, function, None)
    sys.modules[f"qwenvl.{name}"] = module
package = sys.modules["qwenvl"] = ModuleType("qwenvl")
package.__path__ = []
package.data_list = sys.modules["qwenvl.data_list"]  # type: ignore[attr-defined]
spec = importlib.util.spec_from_file_location("qwenvl.data_processor", source)
assert spec is not None
assert spec.loader is not None
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)


def read(export: Path) -> Iterator[Row]:
    for row in reader.read_jsonl(f"{export}/train.jsonl"):
        messages = reader._build_messages(row, export)
        images = []
        for message in messages:
            for block in message["content"]:
                if block["type"] == "image":
                    images.append(digest(block["image"]))
                    block["image"] = ""
        yield {"messages": messages, "images": images}


run(read, out, exports)
