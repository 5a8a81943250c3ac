"""Meanings of the codes in `rejects.jsonl` and the notes of `dataset.json`, for `explain` and docs/converters.md."""

from collections.abc import Mapping

NOTES: Mapping[str, str] = {
    "class-case-merged": "The class has another letter case elsewhere; one spelling is used.",
    "clip-renamed": "The frames have another name than the clip: `~2`, `~3`, ... is added if another has its name.",
    "constant-rate-assumed": "`--sampling fps` without usable timestamps: a constant frame rate was assumed.",
    "damage-unchecked": "`--no_verify`: only the frames that were taken have been checked for damage.",
    "frames-repeated": "The clip has fewer frames than requested, so some are repeated.",
    "image-cell-empty": "All image cells of a turn are empty; the turn has only text.",
    "image-renamed": "The image is stored under another name: `~2`, `~3`, ... is added if another image has its path.",
    "image-suffix-mended": "The image is stored with the extension of its format instead of the one in the source.",
    "offsets-dropped": "`--plain`: the positions of images within the text were not written.",
    "question-cell-empty": "All cells of a question are empty; the turn has its images and the fixed text of the map.",
    "system-dropped": "`--plain`: the system message was not written.",
    "turns-merged": "`import --merge_turns`: consecutive messages of one role were joined.",
    "video-damaged-later": "The clip is damaged after the last frame that was taken.",
    "video-salvaged": "`--salvage`: the clip is damaged; frames were taken from the undamaged part.",
    "weights-dropped": "`--plain --lossy`: the weights of 0 were not written, so that all answers are trained.",
}
"""Code of a note on converted samples -> its meaning."""

REJECTS: Mapping[str, str] = {
    "archive-member": "A member of an archive cannot be unpacked: its name is invalid, or a folder is in its place.",
    "control-token": "A text contains a control token of the model.",
    "converter-error": "The converter raised an error; the message has the line.",
    "decoder-unsure": "decord may not give the exact frames; use `--decoder pyav`.",
    "draft-invalid": "The converter returned an invalid sample.",
    "duplicate-key": "An object of the row has a key twice.",
    "empty-text": "There is no answer, or neither text nor image; use `--unlabelled` if the source has no answers.",
    "field-missing": "The row has no cell in a column used by the map.",
    "field-not-text": "A cell that must be text is something else.",
    "image-ambiguous": "Several files of the source match the name equally well.",
    "image-aspect": "The image is too long and narrow for the tile budget.",
    "image-count": "The row has more or fewer images than places for them.",
    "image-in-answer": "An answer or the system message has an image.",
    "image-in-holdout": "The row has the images of a row that is held out.",
    "image-missing": "The image does not exist in the source.",
    "image-name-collision": "Another sample has an image of the same name and other content.",
    "image-path-unsafe": "The image's path is absolute, leads out of the source, or is not a valid file name.",
    "image-too-large": "The image is over a limit on memory or time.",
    "image-unreadable": "The file is not in a supported image format, is damaged, or has no read permission.",
    "invalid-text": "The text contains a NUL or half a character.",
    "invalid-utf8": "The row is not UTF-8.",
    "json-not-object": "The row is not a JSON object.",
    "json-syntax": "The row is not JSON.",
    "last-turn-open": "The last message is the user's.",
    "line-too-long": "The row is over 64 MB.",
    "media-left-out": "The row has videos, audio or boxes, which a sample cannot hold.",
    "missing-field": "The row has no messages, or a message no role or text.",
    "no-turns": "The row has no text, or no answer.",
    "non-finite-number": "`meta` contains NaN or infinity.",
    "not-in-lists": "The clip is not in the official lists, so its split is unknown.",
    "nothing-trained": "All turns have weight 0, or the answer is labelled as a bad one.",
    "preference-pair": "`--plain`: the rejected answer of a preference pair cannot be written.",
    "role-unknown": "A message has a role that the format does not have.",
    "row-invalid": "The row cannot be read: invalid encoding, JSON, number of cells, label, or split.",
    "system-message-place": "A system message comes after the first message.",
    "tool-turn": "`--plain`: calls of tools cannot be written.",
    "turn-order": "Two user messages or two answers follow each other, or an answer comes first.",
    "video-corrupt": "The clip does not decode without errors.",
    "video-empty": "No frame of the clip can be decoded.",
    "video-missing": "A clip in the lists is not in the source.",
    "video-truncated": "The clip is cut short.",
    "video-unreadable": "The file cannot be opened as a video.",
    "wrong-type": "A value has the wrong type.",
}
"""Code of a reject -> why the sample could not be converted."""


def describe_outcome(code: str) -> str:
    """The meaning of a code as note and as reject reason, one line each; empty if there is no such code."""
    wanted = code.strip().lower().replace("_", "-")
    lines = [
        f"{wanted} ({kind}): {codes[wanted]}"
        for kind, codes in (
            ("note of a conversion, counted in dataset.json", NOTES),
            ("reject reason of a conversion; rejects.jsonl lists the samples", REJECTS),
        )
        if wanted in codes
    ]
    return "\n".join([*lines, "All notes and reject reasons: docs/converters.md"] if lines else [])
