"""Statistics of a set: splits, labels, texts, images, tokens, duplicates."""

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from phi3v_data.engine.base import Engine, EngineSettings
from phi3v_data.engine.make_engine import FEW, open_engine
from phi3v_data.errors import UserError
from phi3v_data.schema import Level
from phi3v_data.sets.duplicates import DuplicateSearch
from phi3v_data.sets.reading import Progress, SourceSet, decode_row, refuse_closed, refuse_no_files, set_name
from phi3v_data.tokens.choose import choose_model, with_image_options
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.validate import tokens
from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.control import control_tokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.repeats import report_repeated_samples
from phi3v_data.validate.stats import collect_stats, histogram
from phi3v_data.validate.survey import Survey

FORMAT = 1


def set_stats(
    directory: str | Path,
    *,
    level: Level = "full",
    num_crops: int | None = None,
    image_options: Mapping[str, int] | None = None,
    model: str | Path | None = None,
    workers: int | None = 1,
    progress: Progress | None = None,
    **engine: Unpack[EngineSettings],
) -> dict[str, Any]:
    """Compute the statistics of a directory; unreadable parts are left out and counted under `problems`.

    Level `quick` reads only the headers of images, so it cannot find duplicates (`duplicates` is null). Tokens are
    counted for `model`, a family or a model directory, under `num_crops` and `image_options`, as `validate` does.
    Images are decoded and compared by `workers` tasks of the `engine` (`EngineSettings`).

    Raises:
        NotFoundError: no such directory or model, or no JSONL file in it.
        UserError: nothing to count, or something in it may not be read.
        BudgetError: `num_crops` is not one that the family takes (also a ValueError).
    """
    chosen = choose_model(model, None)
    family, budget = with_image_options(chosen.family, num_crops, image_options)
    progress = progress or (lambda stage, done, total: None)
    findings = Findings(0)
    survey = Survey(Path(directory), findings, progress)
    refuse_no_files(survey)
    refuse_closed(survey)
    with paused_collector(), open_engine(workers, few=FEW, **engine) as opened:
        counter = None
        if chosen.tokenizer is not None:
            counter = tokens.load_tokenizer(chosen.tokenizer, family, findings, required=False)
        survey.read_rows(counter or text_bytes, markers=control_tokens(family))
        try:
            refuse_closed(survey)
            if not any(survey.scan.num_lines.values()):
                raise UserError(f"{directory}: contains no rows")
            return _count(survey, family, counter, level, budget, opened, progress)
        finally:
            survey.table.close()


def _count(
    survey: Survey,
    family: TokenFamily,
    counter: tokens.TokenCounter | None,
    level: Level,
    budget: int | None,
    engine: Engine,
    progress: Progress,
) -> dict[str, Any]:
    table, manifest = survey.table, survey.layout.manifest
    source = SourceSet(survey, set_name(survey))
    crops = family.choose_budget(budget, manifest.num_crops if manifest else None)
    pixels = level == "full"
    identity = source.pixel_identity(pixels=pixels, engine=engine)
    per_image = tokens.image_tokens(survey.images, family, crops)
    lengths = tokens.row_tokens(table, tokens.text_tokens(table, family, counter), per_image)
    counted = collect_stats(
        table,
        survey.images,
        survey.used,
        lengths,
        per_image,
        survey.scan.labels,
        model=family.name,
        num_crops=crops,
        exact_text=counter is not None,
    )
    duplicates = None
    if pixels:
        search = DuplicateSearch(survey, identity, engine, progress)
        repeats = Findings(0)
        report_repeated_samples(table, identity, repeats)
        duplicates = {
            "exact": search.exact().to_json(),
            "near": search.near().to_json(),
            "samples": {"within": repeats.counts["duplicate-sample"], "across": repeats.counts["leak-sample"]},
        }
    return {
        "format": FORMAT,
        "dir": str(survey.given),
        "name": source.name,
        "level": level,
        "num_samples": len(table),
        "num_turns": int(table.num_turns.sum()),
        "num_images": int(survey.used.sum()),
        "unread_lines": sum(survey.scan.num_lines.values()) - len(table),
        "missing_images": int((table.uses < 0).sum()),
        "groups": len(np.unique(table.groups[table.groups != 0])),
        "text": text_lengths(source),
        "label_balance": {split: balance(counts) for split, counts in counted["labels"].items()},
        **counted,
        "duplicates": duplicates,
    }


def text_lengths(source: SourceSet) -> dict[str, Any]:
    """Histograms of the characters of questions and answers over all turns, as in `Report.stats`."""
    questions, answers = array("I"), array("I")
    for _, line in source.rows():
        for turn in decode_row(line).conversations:
            questions.append(len(turn.user))
            answers.append(len(turn.assistant))
    return {
        "unit": "characters",
        "question": histogram(np.frombuffer(questions, np.uint32)),
        "answer": histogram(np.frombuffer(answers, np.uint32)),
    }


def balance(counts: Mapping[str, int] | None) -> dict[str, Any] | None:
    """Balance of the labels of a split; null if answers are free text.

    `ratio`: rows of the most frequent label over those of the rarest. `evenness`: entropy over that of even labels, 1
    for even ones.
    """
    if not counts:
        return None
    values = np.array(list(counts.values()), np.float64)
    shares = values / values.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    names = list(counts)
    return {
        "labels": len(counts),
        "most": [names[int(values.argmax())], int(values.max())],
        "least": [names[int(values.argmin())], int(values.min())],
        "ratio": round(float(values.max() / values.min()), 2),
        "evenness": round(entropy / float(np.log(len(counts))), 4) if len(counts) > 1 else 1.0,
    }
