"""ANLS as the official DocVQA script computes it."""

from phi3v_train.evaluation.metric import Records
from phi3v_train.evaluation.similarity import mean_similarity, official_similarity


def anls(records: Records) -> float:
    """Average normalised Levenshtein similarity as the official DocVQA script computes it.

    Both texts are lower-cased, stripped, and their white space is collapsed; the distance is divided by the greater
    length of the two texts as given, in upper case; a similarity below 0.5 counts as 0, exactly 0.5 stays. The best
    accepted answer counts.
    """
    return mean_similarity(records, official_similarity)
