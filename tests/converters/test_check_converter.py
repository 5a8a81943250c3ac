"""`check_converter` passes good converters and names what is wrong with each bad one."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from converter_sources import encoded, put

import phi3v_data
from phi3v_data.registry import find
from phi3v_data.testing import ConverterCheckError, _Check, check_converter

BAD = Path(__file__).with_name("bad_converters.py")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for n, letter in enumerate("abcdefg"):
        put(tmp_path / "s" / f"{letter}.png", encoded(n))
    lines = ["picture,answer", *(f"{letter}.png,{letter}" for letter in "abcdefg")]
    put(tmp_path / "s" / "rows.csv", "\n".join(lines))
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["Good", "fine"])
def test_good_ones_pass(source: Path, name: str) -> None:
    result = check_converter(f"{BAD}:{name}", source)
    assert (result.samples, result.rejects) == (7, 0)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("UnstablePlan", r"not deterministic: plan\(\) yields other items the second time"),
        ("SetOrder", "not deterministic: .* differs after another process"),
        ("Clock", r"not pure: convert\(\) gives another result for|not deterministic"),
        ("Place", "not deterministic: (good_train.jsonl contains a path|.* differs after the source at)"),
        (
            "Counting",
            r"(?s)not pure: convert\(\) gives another result for '[a-g]\.png'.*not resumable: .* differs after",
        ),
        ("Remembering", r"not pure: convert\(\) gives another result"),
        ("Crashing", r"not honest: convert\(\) crashes on d\.png \(KeyError: .*bad_converters\.py:[0-9]+\)"),
        ("Blank", r"not honest: with '[a-g]\.png' damaged, a sample is made from something else"),
        ("Half", r"not honest: with '[a-g]\.png' damaged, a sample is made from something else"),
        ("Dropping", r"not honest: with '[a-g]\.png' damaged, 1 sample lost and 0 rejected"),
        ("skipping", r"not honest: with '[a-g]\.png' damaged, 1 sample lost and 0 rejected"),
        ("shuffled", "not deterministic: .* differs after another process"),
    ],
)
def test_bad_ones_are_told(source: Path, name: str, finding: str) -> None:
    with pytest.raises(ConverterCheckError, match=finding) as caught:
        check_converter(f"{BAD}:{name}", source)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.findings


def test_a_class_inside_a_function_can_be_checked(source: Path) -> None:
    class Local(phi3v_data.Converter[phi3v_data.Options]):
        name = "local"

        def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
            yield from (phi3v_data.Item("train", file.path, str(file.file)) for file in source.files([".png"]))

        def convert(self, item: phi3v_data.Item, options: phi3v_data.Options) -> phi3v_data.Draft:
            return phi3v_data.Draft(user="Which?", assistant=item.key, images=[item.path])

    assert check_converter(Local, source).samples == 7


def test_the_examples_pass() -> None:
    scenes = EXAMPLES / "data" / "scenes"
    table = check_converter("table", scenes / "rows.csv", {"map": str(EXAMPLES / "table_map.yaml")})
    generator = check_converter(f"{EXAMPLES / 'generator_converter.py'}:scenes", scenes)
    custom = check_converter(f"{EXAMPLES / 'custom_converter.py'}:Receipts", scenes / "photos", {"upper": True})
    assert [(result.samples, result.rejects) for result in (table, generator, custom)] == [(4, 1), (4, 1), (3, 0)]


def test_ucf101_passes(tmp_path: Path) -> None:
    clips = EXAMPLES / "data" / "UCF101_subset"
    for clip in sorted(clips.rglob("*c01.avi"))[:4]:
        put(tmp_path / "s" / clip.relative_to(clips), clip.read_bytes())
    assert check_converter("ucf101", tmp_path / "s", {"frames": 2}).samples == 4


def test_a_source_that_cannot_be_converted_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(phi3v_data.NotFoundError):
        check_converter(f"{BAD}:Good", tmp_path / "gone")


@pytest.mark.parametrize(("one", "two", "how"), [
    ("a", None, "is missing"), (None, "a", "only exists"), ("a", "b", "differs"),
])  # fmt: skip
def test_a_file_of_one_run_alone_is_named(tmp_path: Path, one: str | None, two: str | None, how: str) -> None:
    for name, text in (("first", one), ("second", two)):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "rows.jsonl").write_text(text)
    check = _Check(find("ucf101"), "", None, False, tmp_path)
    check.compare(tmp_path / "first", tmp_path / "second", "a second run")
    assert check.findings == [f"not deterministic: rows.jsonl {how} after a second run"]
