"""Metrics over prediction records: the official definitions, their variants, and what they refuse."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phi3v_data import metric_names
from phi3v_data.errors import UserError
from phi3v_data.metric_names import built_in_metrics
from phi3v_data.schema import Manifest
from phi3v_train.evaluation import metrics
from phi3v_train.evaluation.choose_metrics import choose_metrics, find_metric
from phi3v_train.evaluation.confusion import Confusion, confusion, confusion_of
from phi3v_train.evaluation.confusion_plot import draw_confusion
from phi3v_train.evaluation.distance import levenshtein
from phi3v_train.evaluation.metric import Undefined, score
from phi3v_train.evaluation.metrics.accuracy import accuracy
from phi3v_train.evaluation.metrics.anls import anls
from phi3v_train.evaluation.metrics.anls_paper import anls_paper
from phi3v_train.evaluation.metrics.anls_sample import anls_sample
from phi3v_train.evaluation.metrics.auroc import auroc
from phi3v_train.evaluation.metrics.consistency import consistency
from phi3v_train.evaluation.metrics.exact_match import exact_match
from phi3v_train.evaluation.metrics.macro_f1 import macro_f1
from phi3v_train.evaluation.records import Prediction, complete_from, read_predictions


def record(prediction: str = "", answers: Any = ("x",), **fields: Any) -> Prediction:
    """A record; `answers` may be one text."""
    accepted = [answers] if isinstance(answers, str) else list(answers)
    base: dict[str, Any] = {
        "id": "val-0000000000",
        "split": "val",
        "turn": 0,
        "prediction": prediction,
        "answers": accepted,
        "scores": {},
        "meta": {},
    }
    return base | fields  # type: ignore[return-value]


def meme(label: str, yes: float, no: float = 1.0) -> Prediction:
    return record(label, label, scores={"yes": yes, "no": no})


@pytest.mark.parametrize(
    ("answer", "prediction", "official", "sample", "paper"),
    [
        ("Marlboro", "MARLBORO", 1, 0, 1),
        ("ab", "ax", 0.5, 0, 0),
        ("1 000", "1  000", 1, 5 / 6, 1),
        ("x", "  x  ", 1, 0, 1),
        ("New York", "new york.", 8 / 9, 2 / 3, 8 / 9),
        ("", "", 1, 1, 1),
        ("abc", "", 0, 0, 0),
        ("a\tb\nc", "a b c", 1, 0.6, 1),
        # Upper case is longer: FUSS has 4 letters, SS 2, FI 2 (of the ligature); distances 1, 1, 2 by hand.
        ("Fuß", "Fu", 3 / 4, 2 / 3, 3 / 4),
        ("ß", "s", 0.5, 0, 0),
        ("\ufb01le", "fle", 3 / 4, 2 / 3, 3 / 4),
        ("Straße", "STRASSE", 5 / 7, 0, 5 / 7),
        # Lower case is longer: a distance of 4 over a length of 2 is not a similarity.
        ("\u0130\u0130", "", 0, 0, 0),
        ("a b", "a   c", 0.8, 0, 0.8),  # one edit after collapsing, over the length before it
    ],
)
def test_anls_and_its_variants(answer, prediction, official, sample, paper):
    records = [record(prediction, answer)]
    assert anls(records) == pytest.approx(official, abs=1e-12)
    assert anls_sample(records) == pytest.approx(sample, abs=1e-12)
    assert anls_paper(records) == pytest.approx(paper, abs=1e-12)


def test_anls_takes_the_best_accepted_answer_and_the_mean_over_questions():
    assert anls([record("new york", ["NYC", "New York", "the city"]), record("blue", "red")]) == 0.5


@given(st.text("abc ", max_size=5), st.text("abc ", max_size=5))
def test_levenshtein_is_the_fewest_edits(left, right):
    def fewest(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1, fewest(a[1:], b[1:]) + (a[0] != b[0]))

    assert levenshtein(left, right) == fewest(left, right)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_levenshtein_is_a_metric(a, b, c):
    assert levenshtein(a, b) == levenshtein(b, a)
    assert (levenshtein(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


@pytest.mark.parametrize(
    ("prediction", "answers", "right", "exact"),
    [
        ("Yes", ["Yes"], 1, 1),
        ("yes.", ["Yes"], 1, 0),
        ("  Yes . ", ["yes"], 1, 0),
        ("Yes\n", ["Yes"], 1, 1),
        ("Yes, it is", ["Yes"], 0, 0),
        ("3.5", ["35"], 0, 0),
        ("b", ["a", "B"], 1, 0),
        ("", ["a"], 0, 0),
        ("ÄPFEL", ["äpfel"], 1, 0),
    ],
)
def test_accuracy_and_exact_match(prediction, answers, right, exact):
    records = [record(prediction, answers)]
    assert (accuracy(records), exact_match(records)) == (right, exact)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=40))
def test_auroc_counts_pairs(samples):
    records = [meme("Yes" if positive else "No", value, 4 - value + 1e-9) for positive, value in samples]
    wins = [(a > b) + (a == b) / 2 for (positive, a), (other, b) in product(samples, samples) if positive and not other]
    if not wins:
        with pytest.raises(Undefined, match="both classes"):
            auroc(records)
    else:
        assert auroc(records) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_auroc_by_hand():
    records = [meme("yes.", 0.9, 0.1), meme("No", 0.1, 0.9), meme("YES", 0.2, 0.8), meme("no", 0.4, 0.6)]
    assert auroc(records) == 0.75
    assert auroc([meme("Yes", 0.0, 0.0), meme("No", 0.5, 0.5)]) == 0.5, "no probability at all is undecided"


def test_auroc_of_one_class_is_reported_and_is_not_nan():
    scores = score([meme("Yes", 1), meme("Yes", 2)], [find_metric("accuracy"), find_metric("auroc")])
    assert scores.values == {"accuracy": 1.0, "auroc": None}
    assert scores.notes == {"auroc": "it needs samples of both classes, and all 2 answers are 'yes'"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (record("yes", "maybe", scores={"yes": 1, "no": 0}), "other than 'yes' or 'no'"),
        (record("yes", ["yes", "no"], scores={"yes": 1, "no": 0}), "other than 'yes' or 'no'"),
        (record("yes", "yes"), "no scores of 'yes' and 'no'"),
        (record("yes", [], scores={"yes": 1, "no": 0}), "has no answers"),
    ],
)
def test_auroc_refuses(bad, words):
    with pytest.raises(UserError, match=words) as caught:
        auroc([meme("no", 0), bad])
    assert "maybe" not in str(caught.value), "texts of samples are not printed"


def test_consistency_is_over_sentences():
    records = [
        record(prediction, "Yes", meta={"sentence_id": sentence})
        for sentence, prediction in [
            ("850-0", "yes"),
            ("850-0", "Yes."),
            ("850-1", "yes"),
            ("850-1", "no"),
            ("9", "no"),
        ]
    ]
    assert accuracy(records) == 3 / 5
    assert consistency(records) == 1 / 3
    with pytest.raises(UserError, match=r"'val-0000000000' \(turn 0\) has no meta.sentence_id"):
        consistency([*records, record("yes", "yes")])


@pytest.mark.parametrize("predictions", [("no", "yes"), ("yes", "no")])
def test_one_wrong_pair_makes_a_sentence_inconsistent_in_any_order(predictions):
    assert consistency([record(each, "yes", meta={"sentence_id": "850-1"}) for each in predictions]) == 0


def test_macro_f1_by_hand():
    records = [record(p, a) for a, p in [("a", "A."), ("a", "b"), ("b", "b"), ("b", "b"), ("c", "nonsense")]]
    # a: 1 hit, 2 true, 1 predicted; b: 2 hits, 2 true, 3 predicted; c: never predicted
    assert macro_f1(records) == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcX")), min_size=1, max_size=60))
def test_macro_f1_and_confusion_against_sets(pairs):
    records = [record(prediction, answer) for answer, prediction in pairs]
    matrix = confusion(records)
    assert sum(sum(row.values()) for row in matrix.counts.values()) == len(pairs)
    f1 = []
    for name in matrix.classes:
        true = {index for index, (answer, _) in enumerate(pairs) if answer == name}
        predicted = {index for index, (_, prediction) in enumerate(pairs) if prediction.lower() == name}
        hits = len(true & predicted)
        assert matrix.counts[name].get(name, 0) == hits
        precision, recall = hits / max(len(predicted), 1), hits / len(true)
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert macro_f1(records) == pytest.approx(sum(f1) / len(f1))
    assert (Confusion.OTHER in matrix.columns()) == any(p.lower() not in matrix.classes for _, p in pairs)


def test_of_several_accepted_answers_the_one_given_is_the_class():
    matrix = confusion([record("cat", ["dog", "Cat"]), record("dog", ["Dog"]), record("cow", ["dog", "cat"])])
    assert matrix.counts == {"cat": {"cat": 1}, "dog": {"dog": 1, Confusion.OTHER: 1}}
    assert matrix.names == {"cat": "Cat", "dog": "dog"}


@pytest.mark.parametrize("num_classes", [2, 3, 101])
def test_the_confusion_matrix_is_drawn_whole(tmp_path, num_classes):
    names = [f"Class{number:03d}" for number in range(num_classes)]
    records = [record(names[(n * k) % num_classes], name) for n, name in enumerate(names) for k in (1, 1, 2)]
    matrix = confusion_of(records)
    assert matrix is not None
    draw_confusion(matrix, tmp_path / "confusion.png", title="val")
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    with Image.open(tmp_path / "confusion.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > (300 if num_classes < 10 else 1500), "a class has more than a few pixels"
    assert 0.3 < (pixels > 250).mean() < 1


def test_free_answers_are_not_classes():
    assert confusion_of([record("a", f"answer {n}") for n in range(10)]) is None
    assert confusion_of([record("a", [])]) is None
    assert confusion_of([]) is None


def test_metrics_are_chosen_by_option_then_dataset_then_accuracy():
    manifest = Manifest(name="memes", task="classification", metrics=("auroc", "accuracy"), splits={})
    assert choose_metrics(["anls", "accuracy", "anls"], manifest).words() == "anls, accuracy (option)"
    assert choose_metrics([], manifest).words() == "auroc, accuracy (dataset.json)"
    assert choose_metrics([]).words() == "accuracy (default)"
    with pytest.raises(UserError, match=r"dataset\.json asks for the metric 'bleu'"):
        choose_metrics([], manifest.model_copy(update={"metrics": ("bleu",)}))


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UserError, match=r"--metric acuracy: no such metric; did you mean 'accuracy'\?"):
        find_metric("acuracy")


OWN = '''"""Own."""
def mean_length(records):
    """Mean length."""
    return sum(len(record["prediction"]) for record in records) / len(records)

def broken(records):
    return records[0]["nothing"]

def text(records):
    return "good"

def nan(records):
    return float("nan")

def ends(records):
    raise SystemExit(0)
'''


def test_a_metric_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    metric = find_metric(f"{file}:mean_length")
    assert metric.name == "mean_length"
    assert score([record("ab"), record("abcd")], [metric]).values == {"mean_length": 3.0}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", r"KeyError: 'nothing' \(mine\.py:7\)"),
        ("text", "must return a finite number, got 'good'"),
        ("ends", r"SystemExit: 0 \(mine\.py:16\)"),
        ("nan", "must return a finite number, got nan"),
        ("mean_lenght", "has no function 'mean_lenght'; it has mean_length, broken, text, nan, ends"),
    ],
)
def test_an_error_in_it_is_reported(tmp_path, name, words):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    with pytest.raises(UserError, match=words) as caught:
        score([record()], [find_metric(f"{file}:{name}")])
    assert str(caught.value).startswith(f"--metric {file}:{name}: ")


def test_a_file_without_a_metric(tmp_path):
    with pytest.raises(UserError, match="the file does not exist"):
        find_metric(f"{tmp_path}/none.py:f")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UserError, match=r"ends\.py: cannot be loaded: SystemExit: 0 \(ends\.py:1\)"):
        find_metric(f"{tmp_path}/ends.py:f")
    (tmp_path / "bad.py").write_text("x = 1\ny = = 2\n")
    with pytest.raises(UserError, match=r"cannot be loaded: SyntaxError.*\(bad\.py:2\)"):
        find_metric(f"{tmp_path}/bad.py:f")
    with pytest.raises(UserError, match="name the function in it as well"):
        find_metric(f"{tmp_path}/bad.py")


SHORTEST = """
def shortest(records):
    return min(len(record["prediction"]) for record in records)
"""


def test_a_file_in_the_folder_is_a_metric(tmp_path, monkeypatch):
    """No list is edited: the module is found by its name."""
    folder = tmp_path / "evaluation" / "metrics"
    folder.mkdir(parents=True)
    (folder / "shortest.py").write_text(SHORTEST)
    locations = [*find_spec("phi3v_train").submodule_search_locations, str(tmp_path)]
    monkeypatch.setattr(metric_names, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=locations))
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "phi3v_train.evaluation.metrics.shortest", raising=False)
    assert find_metric("shortest").function([record("ab"), record("abc")]) == 2
    manifest = Manifest(name="x", task="vqa", metrics=("shortest",), splits={})
    assert choose_metrics([], manifest).words() == "shortest (dataset.json)"
    with pytest.raises(UserError, match=r"did you mean 'shortest'\?"):
        find_metric("shortes")


def test_a_metric_of_an_installed_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "more_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-metrics\nVersion: 1.0\n")
    points = {"least": "more_metrics:shortest", "gone": "more_metrics:nothing", "accuracy": "more_metrics:shortest"}
    points["ends"] = "ending_metrics:shortest"
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[phi3v_train.metrics]\n{lines}")
    (tmp_path / "more_metrics.py").write_text(SHORTEST)
    (tmp_path / "ending_metrics.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_metric("least").function([record("ab"), record("abc")]) == 2
    assert find_metric("accuracy").is_built_in
    with pytest.raises(UserError, match="the installed metric 'gone' cannot be loaded: AttributeError"):
        find_metric("gone")
    with pytest.raises(UserError, match=r"the installed metric 'ends' cannot be loaded: SystemExit \(ending_metrics"):
        find_metric("ends")
    with pytest.raises(UserError, match="the installed metric 'least': ValueError"):
        find_metric("least").function([])


def test_every_module_of_the_folder_has_the_function_of_its_name():
    for name in built_in_metrics():
        assert find_metric(name).function.__module__ == f"phi3v_train.evaluation.metrics.{name}"


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def test_records_are_read_and_completed_with_defaults(tmp_path):
    path = write(tmp_path / "p.jsonl", {"id": "a", "prediction": "x", "answers": ["x"], "meta": {}}, "")
    assert read_predictions(path) == [record("x", "x", id="a", split="", turn=0)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", ":2: not JSON"),
        ([1], ":2: expected a JSON object"),
        ({"id": "b", "prediction": "x", "meta": {}}, ":2 answers: missing; .*give --data_dir"),
        ({"id": "b", "prediction": "x", "answers": []}, ":2 meta: missing; .*give --data_dir"),
        ({"id": "b", "answers": [], "meta": {}}, ":2 prediction: missing"),
        ({"id": "b", "prediction": None, "answers": [], "meta": {}}, "null; a missing prediction is not scored"),
        ({"id": 1, "prediction": "x", "answers": [], "meta": {}}, ":2 id: expected a string"),
        ({"id": "b", "prediction": "x", "answers": [1], "meta": {}}, ":2 answers: expected a list of strings"),
        ({"id": "b", "prediction": "x", "answers": [], "meta": {}, "scores": {"yes": "1"}}, "object of numbers"),
        ({"id": "a", "prediction": "x", "answers": [], "meta": {}}, "was predicted in line 1 already"),
    ],
)
def test_a_line_that_is_not_a_record(tmp_path, value, words):
    path = write(tmp_path / "p.jsonl", {"id": "a", "prediction": "x", "answers": ["x"], "meta": {}}, value)
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(str(path))


def test_answers_come_from_the_dataset_and_a_missing_prediction_is_an_error(tmp_path):
    truth = [record("x", "x", id=name, turn=1, meta={"sentence_id": "s"}) for name in "ab"]
    path = write(tmp_path / "p.jsonl", {"id": "b", "prediction": "B"}, {"id": "a", "prediction": "A", "turn": 1})
    records = complete_from(read_predictions(path, completed=True), truth, "d dev")
    assert [(r["id"], r["prediction"], r["answers"], r["turn"], r["meta"]) for r in records] == [
        ("a", "A", ["x"], 1, {"sentence_id": "s"}),
        ("b", "B", ["x"], 1, {"sentence_id": "s"}),
    ]
    with pytest.raises(UserError, match="1 of 2 predictions are missing, the first is that of 'a'"):
        complete_from(records[1:], truth, "d dev")
    with pytest.raises(UserError, match="d dev has no sample 'b'"):
        complete_from(records, truth[:1], "d dev")


def test_metrics_need_no_torch(tmp_path):
    path = write(tmp_path / "p.jsonl", record("a", "a"))
    program = (
        "import sys\n"
        "from phi3v_train.evaluation import choose_metrics, confusion, records, result, submission\n"
        f"print(choose_metrics.find_metric('anls').function(records.read_predictions(__import__('pathlib').Path({str(path)!r}))))\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")


PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_page_lists_every_metric():
    table = PAGE.partition("## Metrics")[2].partition("**ANLS.**")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(built_in_metrics())


def test_the_figures_of_the_page_are_right():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for answer, prediction, *expected in rows:
        values = [metric([record(prediction, answer)]) for metric in (anls, anls_paper, anls_sample)]
        assert values == pytest.approx([float(each) for each in expected], abs=5e-4)


def test_the_metric_of_the_page_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    metric = find_metric(f"{tmp_path / 'mine.py'}:mean_words")
    assert score([record("two words"), record("")], [metric]).values == {"mean_words": 1.0}


def test_the_record_of_the_page_is_one(tmp_path):
    (line,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert read_predictions(write(tmp_path / "p.jsonl", line.strip()))[0]["scores"] == {"yes": 0.81, "no": 0.12}


def test_names_of_classes_are_cut_only_beyond_28_letters(tmp_path, monkeypatch):
    drawn = []

    def note(figure, *_, **__):
        drawn.extend(label.get_text() for axis in figure.axes[:1] for label in axis.get_yticklabels())

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", note)
    names = ["a" * 28, "b" * 29, "cat"]
    matrix = confusion_of([record(name, name) for name in names for _ in range(2)])
    draw_confusion(matrix, tmp_path / "confusion.png", title="val")
    assert drawn == ["a" * 28, "b" * 27 + "…", "cat"]


def test_the_data_package_knows_the_metrics_without_importing_them():
    program = (
        "import sys\n"
        "from phi3v_data.metric_names import built_in_metrics\n"
        "print(*built_in_metrics()[:2])\n"
        "assert 'phi3v_train' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "accuracy anls\n", "")
