"""The chat format: texts of turns and answers, and everything that follows from one marker."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from phi3v_data.tokens.chat import ChatFormat, TurnText
from phi3v_data.tokens.phi3v import CHAT, PHI3V

UNNUMBERED = ChatFormat(
    system="[SYS]",
    user="[ASK]",
    assistant="[SAY]",
    end_of_turn="[.]",
    image_tag="[PIC]",
    after_role=" ",
    after_end="",
    after_images="~",
)
"""Unlike Phi-3: no number in the tags, no end of the text, no newlines."""


def test_a_conversation_of_phi3v_is_written_as_its_fine_tuning_sample_writes_it() -> None:
    turns = [TurnText("What?", "A cat.", 2), TurnText("And here?", "No.", 1)]
    assert CHAT.conversation_text(turns, system="Be brief.") == (
        "<|system|>\nBe brief.<|end|>\n"
        "<|user|>\n<|image_1|><|image_2|>\nWhat?<|end|>\n<|assistant|>\nA cat.<|end|>\n"
        "<|user|>\n<|image_3|>\nAnd here?<|end|>\n<|assistant|>\nNo.<|end|>\n<|endoftext|>"
    )


def test_a_conversation_of_another_format() -> None:
    turns = [TurnText("a b", "c", 2, (0, 1)), TurnText("d", "e")]
    assert UNNUMBERED.conversation_text(turns, system="s") == (
        "[SYS] s[.][ASK] [PIC]~a[PIC] b[.][SAY] c[.][ASK] d[.][SAY] e[.]"
    )


def test_trained_is_the_end_of_a_turn_and_of_the_last_turn_all_that_follows() -> None:
    assert CHAT.supervised_ending(last=False) == "<|end|>"
    assert CHAT.supervised_ending(last=True) == "<|end|>\n<|endoftext|>"
    assert UNNUMBERED.supervised_ending(last=True) == "[.]"


def test_generation_stops_at_the_ends_and_before_another_message() -> None:
    assert CHAT.stop_strings == ("<|endoftext|>", "<|assistant|>", "<|end|>")
    assert UNNUMBERED.stop_strings == ("[.]",)


def test_image_tags_are_found_with_their_number() -> None:
    assert CHAT.image_pattern.findall("<|image_1|> <|image_|> <|image_12|> <|image|>") == ["1", "12"]
    assert CHAT.numbered_tag(3) == "<|image_3|>"
    assert UNNUMBERED.image_pattern.findall("[PIC] [PICT] [PIC]") == ["[PIC]", "[PIC]"]
    assert UNNUMBERED.numbered_tag(3) == "[PIC]"


def test_pieces_of_a_row_are_cut_at_images_and_before_answers() -> None:
    turns = [TurnText("q", "a", 2, (0, 1)), TurnText("r", "b")]
    pieces, added = PHI3V.sequence_pieces(turns, system="s")
    assert pieces == [
        "<|system|>\ns<|end|>\n<|user|>\n",
        "\nq",
        "<|end|>\n<|assistant|>\n",
        "a<|end|>\n",
        "<|user|>\nr<|end|>\n<|assistant|>\n",
        "b<|end|>\n<|endoftext|>",
    ]
    assert added == 3  # one `<s>` at the start, one behind each image


EDITED = """
import json, sys, types
from pathlib import Path
import phi3v_data.tokens.chat

path = Path(phi3v_data.tokens.chat.__file__).with_name("phi3v.py")
source = path.read_text()
assert source.count('"<|end|>"') == 1
module = types.ModuleType("phi3v_data.tokens.phi3v")
module.__file__ = str(path)
sys.modules[module.__name__] = module
exec(compile(source.replace('"<|end|>"', '"<|step|>"'), str(path), "exec"), module.__dict__)

from phi3v_data.schema import Sample
from phi3v_data.validate import validate
from phi3v_train.data.encode import Encoder
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.generation import stop_ids_of
from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

directory, folder = sys.argv[1:]
tokenizer = Phi3VTokenizer.from_pretrained(folder)
processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=4), tokenizer)
row = json.loads(Path(directory, "train.jsonl").read_text().splitlines()[0])
encoder = Encoder(PHI3V.renderer(processor))
tokens = encoder.tokenize(Sample.model_validate(row), [], num_crops=4)
prompt, _ = encoder.tokenize_prompt(Sample.model_validate(row), [], num_crops=4, turn=1)
report = validate(directory, tokenizer=folder, use_receipt=False)
texts = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
print(json.dumps({
    "labels": tokenizer.convert_ids_to_tokens([label for label in tokens.labels.tolist() if label >= 0]),
    "prompt": tokenizer.decode(prompt),
    "length": len(tokens.input_ids),
    "counted": report.stats["tokens"]["sum"],
    "findings": [(found.line, found.severity, found.message) for found in report.problems],
    "stops": tokenizer.convert_ids_to_tokens(stop_ids_of(tokenizer)),
    "template": processor.apply_chat_template(list(texts)),
}))
"""


def test_another_end_of_turn_is_one_edit(tmp_path: Path) -> None:
    """One literal of `tokens/phi3v.py` changed: labels, prompt, counts, findings, stop ids and template follow."""
    pytest.importorskip("torch")
    golden = Path(__file__).parents[1] / "data" / "golden" / "tiny_tokenizer"
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for file in golden.iterdir():
        (tokenizer / file.name).write_text(file.read_text().replace("<|end|>", "<|step|>"))
    turns = [{"images": [], "user": user, "assistant": answer} for user, answer in (("q", "no"), ("r", "yes"))]
    lines = [{"id": "a", "source": "s", "conversations": turns}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", EDITED, str(tmp_path), str(tokenizer)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["labels"].count("<|step|>") == 2
    assert "<|end|>" not in found["labels"]
    assert found["prompt"].count("<|step|>") == 3
    assert found["counted"] == found["length"]
    assert found["findings"] == []
    assert found["stops"] == ["<|endoftext|>", "<|assistant|>", "<|step|>"]
    assert found["template"] == "<|user|>\nq<|step|>\n<|assistant|>\na<|step|>\n"


def test_a_format_with_images_first_moves_them_before_the_text() -> None:
    turn = TurnText("ab", "x", 2, (1, 2))
    assert UNNUMBERED.user_parts(turn) == ["a", "b", ""]
    assert replace(UNNUMBERED, images_first=True).user_parts(turn) == ["", "", "~ab"]
