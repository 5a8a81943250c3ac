"""Tokens as people read them, of both kinds of vocabulary: pieces with `▁`, and bytes spelled as GPT-2's letters."""

from sample_dirs import processor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from phi3v_train.inspection.words import as_text, marker_words, token_words

TEXT = "Is it größer?\n\nYes, 火 and 🔥\tare."


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer as Qwen's: byte-level, so that a letter may be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["Is it größer? Yes are."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def test_bytes_are_read_as_text_where_they_are_text() -> None:
    tokenizer = byte_level()
    words = token_words(tokenizer, tokenizer(TEXT + "<|im_end|>")["input_ids"])
    assert "".join(words).startswith("Is▁it▁größer?⏎⏎Yes,▁⟨e7⟩")
    assert words[-1] == "<|im_end|>"
    assert marker_words(tokenizer) == {"<|im_end|>"}
    spelled = [word.strip("⟨⟩") for word in words if word.startswith("⟨")]
    assert bytes.fromhex("".join(spelled).replace("⟩⟨", "")).decode() == "火🔥"
    assert "Ġ" not in "".join(words)


def test_pieces_keep_their_words() -> None:
    tokenizer = processor().tokenizer
    words = token_words(tokenizer, tokenizer("two\nlines", add_special_tokens=False)["input_ids"])
    assert words[0].startswith("▁")
    assert "".join(words) == "▁two⏎lines"
    assert as_text("▁two⏎") == " two⏎\n"
    assert "<|user|>" in marker_words(tokenizer)
