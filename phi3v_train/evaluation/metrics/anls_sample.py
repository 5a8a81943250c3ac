"""ANLS as the Phi-3.5-vision sample computes it: case and spaces count."""

from phi3v_train.evaluation.metric import Records
from phi3v_train.evaluation.similarity import mean_similarity, sample_similarity


def anls_sample(records: Records) -> float:
    """ANLS as the public fine-tuning sample computes it: the texts as they are, case and spaces count; 0.5 is 0."""
    return mean_similarity(records, sample_similarity)
