"""Crop geometry and token counts against the golden table and against a second derivation in exact fractions."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3v_data.tokens.family import ImageShapeError
from phi3v_data.tokens.phi3v_geometry import crop_geometry, num_image_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TABLE = json.loads((GOLDEN / "token_count_table.json").read_text())


@pytest.mark.parametrize(("num_crops", "width", "height", "tokens", "padded"), TABLE)
def test_every_row_of_the_golden_table(num_crops: int, width: int, height: int, tokens: int, padded: list[int]) -> None:
    if 0 in padded:
        with pytest.raises(ImageShapeError, match=f"{width} x {height} pixels is too narrow"):
            crop_geometry(width, height, num_crops)
        return
    geometry = crop_geometry(width, height, num_crops)
    assert [geometry.padded_width, geometry.padded_height] == padded
    assert geometry.num_tokens == num_image_tokens(width, height, num_crops) == tokens


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 16))
def test_against_exact_fractions(width: int, height: int, num_crops: int) -> None:
    """The grid found by trying every budget; sizes may differ by a pixel where a quotient is a whole number."""
    long, short = max(width, height), min(width, height)
    ratio = Fraction(long, short)
    scale = max(s for s in range(1, num_crops + 1) if s * math.ceil(s / ratio) <= num_crops)
    exact_short = 336 * scale / ratio
    if exact_short < 1:
        with pytest.raises(ImageShapeError):
            crop_geometry(width, height, num_crops)
        return
    geometry = crop_geometry(width, height, num_crops)
    rows, cols = (geometry.cols, geometry.rows) if geometry.turned else (geometry.rows, geometry.cols)
    resized = (geometry.width, geometry.height)
    assert geometry.turned == (width < height)
    assert cols == scale
    assert rows == math.ceil(min(resized) / 336)
    assert max(resized) == 336 * scale
    assert abs(min(resized) - math.floor(exact_short)) <= (exact_short.denominator == 1)
    assert geometry.left == (geometry.padded_width - geometry.width) // 2
    assert geometry.top == (geometry.padded_height - geometry.height) // 2
    assert geometry.num_tiles == geometry.rows * geometry.cols + 1 <= num_crops + 1
    body = 12 * geometry.rows * (12 * geometry.cols + 1)
    assert geometry.num_tokens == body + 1 + 12 * 13


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 16))
def test_a_rotated_image_has_the_rotated_geometry(width: int, height: int, num_crops: int) -> None:
    try:
        one = crop_geometry(width, height, num_crops)
    except ImageShapeError:
        return
    other = crop_geometry(height, width, num_crops)
    assert (one.rows, one.cols, one.width, one.height, one.left, one.top) == (
        other.cols,
        other.rows,
        other.height,
        other.width,
        other.top,
        other.left,
    )


@pytest.mark.parametrize("num_crops", [0, -1, 17, True, 4.0, "4", None])
def test_a_budget_out_of_range_is_refused(num_crops: object) -> None:
    """Also one that is equal to a budget for which the geometry is known already."""
    for known in (1, 4):
        crop_geometry(100, 100, known)
    with pytest.raises(ValueError, match="num_crops must be a whole number from 1 to 16"):
        crop_geometry(100, 100, num_crops)  # type: ignore[arg-type]  # the point of the test


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 4)])
def test_an_empty_image_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both sides must be at least 1"):
        crop_geometry(*size, 4)
