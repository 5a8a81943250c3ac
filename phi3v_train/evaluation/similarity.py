"""Normalised Levenshtein similarity of a prediction and an answer, in the three definitions in use."""

from collections.abc import Callable
from statistics import fmean

from phi3v_train.evaluation.answers import answers_of
from phi3v_train.evaluation.distance import levenshtein
from phi3v_train.evaluation.metric import Records

THRESHOLD = 0.5


def mean_similarity(records: Records, similarity: Callable[[str, str], float]) -> float:
    """Mean over the records of the similarity to the best accepted answer."""
    return fmean(max(similarity(record["prediction"], answer) for answer in answers_of(record)) for record in records)


def official_similarity(prediction: str, answer: str) -> float:
    """The official similarity of two texts, 0 or at least 0.5."""
    similarity = 1 - _official_distance(prediction, answer)
    return similarity if similarity >= THRESHOLD else 0.0


def paper_similarity(prediction: str, answer: str) -> float:
    """Similarity by the paper's threshold: 0, or more than 0.5."""
    distance = _official_distance(prediction, answer)
    return 1 - distance if distance < THRESHOLD else 0.0


def sample_similarity(prediction: str, answer: str) -> float:
    """Similarity of the texts as they are: 0, or more than 0.5."""
    distance = _distance(prediction, answer, max(len(prediction), len(answer)))
    return 1 - distance if distance < THRESHOLD else 0.0


def _official_distance(prediction: str, answer: str) -> float:
    """Normalised distance as the official script divides it: upper case may be longer than the text ("ß" is "SS")."""
    length = max(len(prediction.upper()), len(answer.upper()))
    return _distance(_collapse(prediction), _collapse(answer), length)


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(left: str, right: str, length: int) -> float:
    return levenshtein(left, right) / length if length else 0.0
