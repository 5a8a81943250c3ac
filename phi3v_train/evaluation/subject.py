"""The subject of an evaluation: a split, its metrics and a model, all found before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from phi3v_data.remote.address import refuse_address
from phi3v_train.data.sources import Source
from phi3v_train.evaluation.choose_metrics import Choice, choose_metrics
from phi3v_train.evaluation.prompts import open_split
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.locate import locate
from phi3v_train.settings import Settings


@dataclass(frozen=True, slots=True)
class Subject:
    """A split, the metrics if it is scored, and the files of the model."""

    source: Source
    choice: Choice | None
    files: ModelFiles


def find_subject(
    settings: Settings, data_dir: Path, output_dir: Path, *, scored: bool, base: str | None = None
) -> Subject:
    """Open the data and find the model.

    Args:
        settings: of model, evaluation and data.
        data_dir: conversations directory.
        output_dir: where predictions will go.
        scored: metrics will be computed, so answers are needed.
        base: model under an adapter, if it is not the one that the adapter names.

    Raises:
        UserError: one of them is not there or does not fit.
    """
    refuse_address(output_dir, "--output_dir")
    config = settings.config
    source = open_split(data_dir, config.eval.eval_split, num_crops=None, scored=scored)
    choice = choose_metrics(config.eval.metric, source.manifest) if scored else None
    files = locate(config.model.model_name_or_path, base=base)
    source = source.with_option(files.family.image_budget(config.model.image_options)).with_model(files)
    return Subject(source, choice, files)
