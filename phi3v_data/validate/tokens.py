"""Lengths of samples in tokens: images exactly, from their size; text exactly with a tokenizer, else estimated.

The sequence counted is the one that training builds out of the chat format of the model family.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.errors import NotFoundError, how_to_install
from phi3v_data.media.integrity import TOO_LARGE, UNREADABLE
from phi3v_data.messages import short, shown, shown_path
from phi3v_data.tokens.chat import TurnText
from phi3v_data.tokens.choose import ChosenModel
from phi3v_data.tokens.family import ImageShapeError, TokenFamily
from phi3v_data.tokens.model_files import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG
from phi3v_data.tokens.registry import count_image_tokens
from phi3v_data.validate.batch import Batch, new_units
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import ImageReport, ImageTable
from phi3v_data.validate.receipt import content_digest
from phi3v_data.validate.rowtypes import Row
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]

TOKENIZER_FILE = "tokenizer.json"


def estimated(num_bytes: Ints, num_turns: Ints, num_images: Ints, family: TokenFamily) -> Ints:
    """Text tokens of each row: the markers are counted, the text itself is estimated from its bytes."""
    rates = family.estimate
    text: Ints = np.ceil(num_bytes / rates.bytes_per_token).astype(np.int64)
    text += rates.per_turn * num_turns + rates.per_image * num_images + rates.per_row
    return text


def text_tokens(table: RowTable, family: TokenFamily, counter: "TokenCounter | None") -> Ints:
    """Text tokens of each row of a table that was read with `counter`; estimated if there is none."""
    if counter is None:
        return estimated(table.units, table.num_turns, table.num_uses, family)
    return table.units.astype(np.int64)


class TokenCounter:
    """Exact text tokens of a family's rows with `tokenizer.json` of a directory; `Units` of a row scan."""

    def __init__(self, tokenizer: Any, family: TokenFamily) -> None:
        self._tokenizer = tokenizer
        self._family = family

    def __call__(self, batch: Batch, users: list[str], answers: list[str]) -> Ints:
        pieces: list[str] = []
        owners: list[int] = []
        extra = np.zeros(len(batch.rows), np.int64)
        for index, row in enumerate(batch.rows):
            system = "" if row.system is UNSET else row.system
            texts, extra[index] = self._family.sequence_pieces(turn_texts(row), system=system)
            pieces += texts
            owners += [index] * len(texts)
        np.add.at(extra, np.asarray(owners, np.int64), self._lengths(pieces))
        extra += new_units(batch, self._lengths)
        return extra

    def _lengths(self, texts: Sequence[str]) -> Ints:
        encoded = self._tokenizer.encode_batch_fast(
            [text.encode(errors="replace").decode() for text in texts], add_special_tokens=False
        )
        return np.fromiter(map(len, encoded), np.int64, len(texts))


def turn_texts(row: Row) -> list[TurnText]:
    """The turns of a row as a chat format takes them."""
    return [
        TurnText(
            turn.user,
            turn.assistant,
            0 if turn.images is UNSET else len(turn.images),
            () if turn.image_offsets is UNSET else turn.image_offsets,
        )
        for turn in row.conversations
    ]


def load_tokenizer(
    directory: Path, family: TokenFamily, findings: Findings, *, required: bool = True
) -> TokenCounter | None:
    """The tokenizer of a model directory; None, with a `check-skipped`, where it cannot be used here.

    Raises NotFoundError if the directory has no tokenizer and `required`.
    """
    file = Path(directory) / TOKENIZER_FILE
    if not file.is_file():
        if required:
            raise NotFoundError(f"{directory}: no tokenizer.json there; --tokenizer takes the directory of a model")
        findings.add(
            "check-skipped",
            f"text tokens are estimated: {shown_path(directory)} has no tokenizer.json",
            hint="name a directory that has one with --tokenizer",
        )
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        findings.add(
            "check-skipped",
            "text tokens are estimated: the package 'tokenizers' is not installed",
            hint=how_to_install("hub"),
        )
        return None
    try:
        return TokenCounter(Tokenizer.from_file(str(file)), family)
    except Exception as error:  # the library raises plain Exception on a file that it cannot read
        findings.add(
            "check-skipped",
            f"text tokens are estimated: {shown_path(file)} cannot be read ({shown(str(error))})",
            hint="name the directory of a tokenizer that `tokenizers` reads",
        )
        return None


def report_settings(chosen: ChosenModel, findings: Findings) -> None:
    """Report a model directory whose image tokens can only be counted with the defaults of its family."""
    if chosen.without_settings is not None:
        findings.add(
            "check-skipped",
            f"image tokens are counted with the defaults of the family {chosen.family.name}: "
            f"{shown_path(chosen.without_settings)} has neither {PREPROCESSOR_CONFIG} nor {PROCESSOR_CONFIG}",
            hint="copy them from the model's original files",
        )


def tokenizer_identity(directory: Path) -> str:
    """Digest of a directory's tokenizer, or the reason why it cannot be used here."""
    if find_spec("tokenizers") is None:
        return "not installed"
    return content_digest(directory / TOKENIZER_FILE)


class ImageCounts(NamedTuple):
    """Image tokens of each entry: as the only image of a row, and as one of several."""

    alone: Ints
    several: Ints


def image_tokens(images: ImageTable, family: TokenFamily, budget: int | None) -> ImageCounts:
    """Image tokens of each entry, 0 if its size is not known, -1 if the image processor cannot take it.

    Raises:
        UserError: the family is another package's, and fails.
    """
    alone = _count(images, lambda width, height: count_image_tokens(family, width, height, budget))
    if not family.several_differ:
        return ImageCounts(alone, alone)
    return ImageCounts(alone, _count(images, lambda w, h: family.several_image_tokens(w, h, budget)))


def _count(images: ImageTable, count: Callable[[int, int], int]) -> Ints:
    """`count(width, height)` of each entry; see `image_tokens`."""
    facts = images.facts
    sizes = np.stack([facts["width"], facts["height"]], axis=1).astype(np.int64)
    distinct, inverse = np.unique(sizes, axis=0, return_inverse=True)
    counts = np.zeros(len(distinct), np.int64)
    for index, (width, height) in enumerate(distinct.tolist()):
        if width and height:
            try:
                counts[index] = count(width, height)
            except ImageShapeError:
                counts[index] = -1
    tokens = counts[inverse.reshape(-1)] if len(distinct) else np.zeros(len(facts), np.int64)
    tokens[facts["flags"] & (TOO_LARGE | UNREADABLE) != 0] = 0
    return tokens


def report_aspect(
    report: ImageReport,
    tree: ImageTree,
    table: RowTable,
    per_image: ImageCounts,
    family: TokenFamily,
    budget: int | None,
) -> None:
    """Report each use of an image whose shape the image processor cannot take."""
    facts, findings = report.images.facts, report.findings
    if not len(per_image.alone):
        return
    uses = np.flatnonzero((table.uses >= 0) & (per_image.alone[table.uses] < 0))
    for use in findings.up_to_limit("image-aspect", uses.tolist()):
        index = int(table.uses[use])
        try:
            count_image_tokens(family, int(facts["width"][index]), int(facts["height"][index]), budget)
        except ImageShapeError as error:
            message = short(f"{shown(tree.path(index), 100)}: {error}")
            report.report_use("image-aspect", use, message, "crop it, or add a margin on its short side")


def row_tokens(table: RowTable, text: Ints, per_image: ImageCounts) -> Ints:
    """Tokens of each row's whole sequence."""
    return text + row_image_tokens(table, per_image)


def row_image_tokens(table: RowTable, per_image: ImageCounts) -> Ints:
    """Image tokens of each row; an image whose size is not known counts as 0."""

    def total(counts: Ints) -> Ints:
        known = np.maximum(counts, 0)
        return table.sum_uses(lambda uses, _: np.where(uses >= 0, known[uses], 0))

    if not len(per_image.alone):
        return np.zeros(len(table), np.int64)
    alone = total(per_image.alone)
    if per_image.several is per_image.alone:
        return alone
    return np.where(np.diff(table.starts) > 1, total(per_image.several), alone)


class Places(Protocol):
    """Knows where rows are."""

    def place(self, row: int) -> dict[str, Any]:
        """File, line and id of a row, as arguments of `Findings.add`."""


def report_lengths(
    table: Places, tokens: Ints, findings: Findings, family: TokenFamily, *, max_tokens: int | None, exact: bool
) -> None:
    """Report rows over `max_tokens`, and rows past the context switch of the family."""
    about = "" if exact else "about "

    def report(code: str, rows: npt.NDArray[np.intp], words: Callable[[int], str], hint: str, **more: Any) -> None:
        for row in findings.up_to_limit(code, rows.tolist(), **more):
            findings.add(code, words(row), **table.place(row), hint=hint, **more)

    if max_tokens is not None:
        report(
            "too-long",
            np.flatnonzero(tokens > max_tokens),
            lambda row: f"{about}{tokens[row]} tokens, over the limit of {max_tokens}",
            ("" if family.max_budget is None else f"lower --{family.budget_option}, ")
            + "shorten the text"
            + " or raise the limit"
            + ("" if exact else "; --tokenizer counts text exactly"),
            severity="error" if exact else "warning",
        )
    switch = family.context_switch
    if switch is not None:
        report(
            "rope-switch",
            np.flatnonzero(tokens > switch),
            lambda row: f"{about}{tokens[row]} tokens: beyond {switch} the model uses its long-context rope factors",
            "",
        )
