"""What the codes in `rejects.jsonl` and in the notes of `dataset.json` mean, for `explain` and docs/converters.md."""

from collections.abc import Mapping

NOTES: Mapping[str, str] = {
    "class-case-merged": "The class is spelled with other letter case elsewhere; one spelling is used.",
    "clip-renamed": "The clip's frames have another name than the clip: `~2` is added where another one has that name.",
    "constant-rate-assumed": "`--sampling fps` without usable timestamps: all frames were taken to last equally long.",
    "damage-unchecked": "`--no_verify`: only the frames that were taken are known to be whole.",
    "frames-repeated": "The clip has fewer frames than were asked for, so some stand more than once.",
    "image-cell-empty": "All image cells of a turn are empty; the turn has its text alone.",
    "image-renamed": "The image has another name than in the source: `~2` is added where another one has that path.",
    "image-suffix-mended": "The image is stored with the ending of its format, not with that of the source.",
    "offsets-dropped": "`--plain`: the places of images within the text were not written.",
    "question-cell-empty": "All cells of a question are empty; the turn has its images and the map's own words.",
    "video-damaged-later": "The clip is damaged behind the last frame that was taken.",
    "video-salvaged": "`--salvage`: the clip is damaged; frames were taken from the part that is whole.",
}
"""Code of a note, which is counted for samples that were made -> what was done."""

REJECTS: Mapping[str, str] = {
    "archive-member": "A member of an archive cannot be a file here: its name, or a folder in its place.",
    "converter-error": "The converter raised an error; the message has the line.",
    "decoder-unsure": "decord may not give the exact frames; use `--decoder pyav`.",
    "draft-invalid": "The converter gave something that is no sample.",
    "empty-text": "There is no answer, or neither text nor image; `--unlabelled` where the source has no answers.",
    "field-missing": "The row has no cell in a column that the map names.",
    "field-not-text": "A cell that must be text holds something else.",
    "image-ambiguous": "Several files of the source fit the name equally well.",
    "image-aspect": "The image is too long and narrow for the tile budget.",
    "image-in-holdout": "The row has the images of a row that is held out.",
    "image-missing": "There is no such image in the source.",
    "image-name-collision": "Another sample has an image of the same name and other content.",
    "image-path-unsafe": "The image's path is absolute, leads out of the source, or cannot be a file's name.",
    "image-too-large": "The image would cost more memory or time than is allowed.",
    "image-unreadable": "The file is not an image that is read, is damaged, or may not be read.",
    "invalid-text": "The text holds a NUL or half a character.",
    "no-turns": "The row has no text.",
    "non-finite-number": "`meta` holds NaN or infinity.",
    "not-in-lists": "The clip is in none of the official lists, so its split is unknown.",
    "row-invalid": "The row cannot be read: its encoding, its JSON, its number of cells, its label.",
    "video-corrupt": "The clip does not decode without errors.",
    "video-empty": "Not one frame of the clip can be decoded.",
    "video-missing": "The lists name a clip that is not in the source.",
    "video-truncated": "The clip is cut short.",
    "video-unreadable": "The file cannot be opened as a video.",
}
"""Reason of a reject -> why the sample could not be made."""


def describe_outcome(code: str) -> str:
    """What a note or a reason of a reject means, in a line each; empty where there is no such code."""
    wanted = code.strip().lower().replace("_", "-")
    lines = [
        f"{wanted} ({kind}): {codes[wanted]}"
        for kind, codes in (
            ("note of a conversion, counted in dataset.json", NOTES),
            ("reject reason of a conversion; rejects.jsonl says where", REJECTS),
        )
        if wanted in codes
    ]
    return "\n".join([*lines, "All notes and reject reasons: docs/converters.md"] if lines else [])
