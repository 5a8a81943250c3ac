"""ANLS as the DocVQA paper defines it: a similarity of exactly 0.5 counts as 0."""

from phi3v_train.evaluation.metric import Records
from phi3v_train.evaluation.similarity import mean_similarity, paper_similarity


def anls_paper(records: Records) -> float:
    """ANLS with the paper's threshold: the normalised distance must be below 0.5, so exactly 0.5 counts as 0."""
    return mean_similarity(records, paper_similarity)
