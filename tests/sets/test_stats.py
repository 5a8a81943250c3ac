"""stats: counts that a plain count agrees with, duplicates of both kinds, and the search behind them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import make_cli
from PIL import Image
from processes import run_data
from set_builders import encoded, make_image, png, row, write_set

from phi3v_data.sets.components import image_links, join_rows
from phi3v_data.sets.stats import set_stats
from phi3v_data.validate import near
from phi3v_data.validate.near import near_pairs_within
from phi3v_data.validate.table import RowTable


def lighter(image: Image.Image) -> Image.Image:
    return image.point(lambda level: min(255, level + 6))


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    """Three images twice over by pixels, two that look alike, one that both splits use."""
    images = {f"{n}.png": png(n) for n in range(6)}
    images |= {"0.bmp": encoded(make_image(0), "BMP"), "1.bmp": encoded(make_image(1), "BMP")}
    images |= {"alike.png": encoded(lighter(make_image(2))), "wide.png": encoded(make_image(9, (90, 40)))}
    train = [row(f"t{n}", f"{n}.png", answer="yes" if n % 3 else "no", group=f"g{n}") for n in range(6)]
    train += [row("t6", "0.bmp", answer="yes"), row("t7", "alike.png", "wide.png", answer="yes")]
    val = [row("v0", "1.bmp", answer="no"), row("v1", "3.png", answer="no"), row("v2", "gone.png", answer="no")]
    return write_set(tmp_path / "in", {"train.jsonl": train, "val.jsonl": [*val, "{"]}, images)


def test_numbers_are_those_of_a_plain_count(counted: Path) -> None:
    stats = set_stats(counted, num_crops=4)
    assert (stats["num_samples"], stats["num_turns"], stats["num_images"]) == (11, 11, 10)
    assert (stats["unread_lines"], stats["missing_images"], stats["groups"]) == (1, 1, 6)
    assert stats["labels"] == {"train": {"yes": 6, "no": 2}, "val": {"no": 3}}
    assert stats["label_balance"]["train"]["ratio"] == 3.0
    assert stats["label_balance"]["train"]["most"] == ["yes", 6]
    assert stats["label_balance"]["train"]["evenness"] == 0.8113  # of 3 to 1, in bits
    assert stats["label_balance"]["val"]["evenness"] == 1.0
    assert stats["image_sizes"] == {"48x40": 9, "90x40": 1}
    assert stats["text"]["answer"]["max"] == 3
    assert stats["text"]["question"]["sum"] == sum(len(f"What is {name}?") for name in ["t0"] * 8 + ["v0"] * 3)


def test_duplicates_within_and_across_splits(counted: Path) -> None:
    found = set_stats(counted)["duplicates"]
    assert found["exact"]["groups"] == 2
    assert found["exact"]["pictures"] == 4
    assert found["exact"]["within"] == {"train": 2}
    assert found["exact"]["across"] == {"train/val": 2}
    assert found["exact"]["examples"] == [["0.bmp", "0.png"], ["1.bmp", "1.png"]]
    assert found["near"]["examples"] == [["2.png", "alike.png"]]
    assert found["near"]["within"] == {"train": 2}
    assert found["near"]["across"] == {}


def test_the_command_prints_text_and_json(counted: Path) -> None:
    done = run_data("stats", counted)
    assert done.returncode == 0, done.stderr
    for words in (
        "11 samples, 11 turns, 10 images",
        "look alike: 2 files in 1 group",
        "1 line not counted, as not valid rows",
        "'yes' 6",
    ):
        assert words in done.stdout
    stats = json.loads(run_data("stats", counted, "--json", "--level", "quick").stdout)
    assert (stats["level"], stats["duplicates"]) == ("quick", None)
    assert run_data("stats", counted / "nowhere").returncode == 2


@pytest.mark.parametrize(("number", "more"), [(5, ""), (6, " and 1 more size"), (7, " and 2 more sizes")])
def test_five_image_sizes_are_listed(
    tmp_path: Path, number: int, more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"{n}.png": encoded(make_image(n, (40 + n, 40))) for n in range(number)}
    rows = [row(f"r{n}", f"{n}.png") for n in range(number)]
    _, out, _ = make_cli(capsys, monkeypatch)("stats", write_set(tmp_path / "in", {"train.jsonl": rows}, images))
    (line,) = [line for line in out.splitlines() if line.startswith("image sizes")]
    assert line == f"image sizes  40x40 (1), 41x40 (1), 42x40 (1), 43x40 (1), 44x40 (1){more}"


def test_a_count_of_one_has_no_plural_and_a_missing_row_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = make_cli(capsys, monkeypatch)
    one = write_set(tmp_path / "one", {"x_val.jsonl": [row("a", "a.png")]}, {"a.png": png(1)})
    assert cli("stats", one, "--level", "quick")[1].startswith(f"{one}: 1 sample, 1 turn, 1 image\n")
    assert "\n1 turn, 1 different image\n" in cli("validate", one, "--level", "quick")[1]
    assert cli("merge", one, tmp_path / "out")[1] == f"{tmp_path}/out: 1 sample (val 1), 1 image\n"
    code, _, err = cli("preview", one, "--row", 5)
    assert (code, err) == (2, f"error: {one}: no row 5 in split 'val', which has 1 row\n")
    (tmp_path / "empty").mkdir()
    sentence = "no split found; it contains no NAME_SPLIT.jsonl file, such as train.jsonl"
    for command in ("stats", "card"):
        assert cli(command, tmp_path / "empty") == (2, "", f"error: {tmp_path}/empty: {sentence}\n")
    (tmp_path / "empty/train.jsonl").touch()
    new = tmp_path / "new"
    for args in (["stats"], ["merge", new], ["split", new, "--split", "train=0.5,val=0.5"]):
        command, *more = args
        assert cli(command, tmp_path / "empty", *more) == (2, "", f"error: {tmp_path}/empty: contains no rows\n"), args


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 63), max_size=6)), max_size=60),
    st.sampled_from([12, 2048]),
    st.sampled_from([0, near.MANY]),
)
def test_the_search_finds_all_near_hashes_once(
    seeds: list[int], changes: list[tuple[int, set[int]]], long_run: int, many: int
) -> None:
    values = {seeds[n % len(seeds)] ^ sum(1 << bit for bit in bits) for n, bits in changes} | set(seeds)
    hashes = np.array(sorted(values), np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_LONG_RUN", long_run)
        patch.setattr(near, "MANY", many)
        left, right, complete = near_pairs_within(hashes)
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    assert complete
    assert np.array_equal(np.stack([left, right], axis=1), np.argwhere(np.triu(distances <= 4, 1)))


@pytest.mark.parametrize(("many", "most"), [(near.MANY, 0.5), (0, 0.02)])
def test_with_more_bands_few_hashes_are_compared(many: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons per hash are in proportion to the hashes: with three bands of seven a sixtieth of those with two."""
    compared = 0
    are_near = near._are_near

    def count(left: near.Hashes, right: near.Hashes) -> object:
        nonlocal compared
        compared += len(left)
        return are_near(left, right)

    monkeypatch.setattr(near, "_are_near", count)
    monkeypatch.setattr(near, "MANY", many)
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**64 - 1, 100_000, dtype=np.uint64))
    near_pairs_within(hashes)
    assert 0 < compared / len(hashes) < most
    assert near.MANY in (0, 1 << 21)  # where two of six bands begin to take longer


def test_the_links_of_images_come_in_few_pieces_however_many_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is joined in passes over all rows: their number must not grow with the rows."""
    monkeypatch.setattr("phi3v_data.sets.components._USES_AT_ONCE", 10)
    num_rows = 1000
    table = RowTable(Path("/nowhere"))
    table.begin_file("train.jsonl", "train")
    ones = np.ones(num_rows, np.int64)
    numbers = np.arange(num_rows)
    table.append(
        lines=numbers, offsets=numbers, ids=numbers, texts=numbers, units=ones, num_turns=ones, num_uses=ones,
        uses=numbers % 100,
    )  # fmt: skip
    table.finish()

    class Paths:
        identities = numbers[:100]

        def of_uses(self, uses: object) -> object:
            return uses

    identity: Any = Paths()
    pieces = list(image_links(table, identity))
    assert len(pieces) == 16
    assert join_rows(num_rows, pieces).tolist() == [row % 100 for row in range(num_rows)]


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_joined_rows_are_those_that_a_path_leads_between(num_rows: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % num_rows, b % num_rows) for a, b in pairs]
    expected = list(range(num_rows))
    for _ in range(num_rows):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    links = np.array(pairs, np.int64).reshape(-1, 2)
    half = len(links) // 2
    parts = [(links[:half, 0], links[:half, 1]), (links[half:, 0], links[half:, 1])]
    assert join_rows(num_rows, parts).tolist() == expected
