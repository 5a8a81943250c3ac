"""Digests of rows: plain data take a faster way to the digest that every other value gets."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3v_data.sources import fingerprint as module
from phi3v_data.sources.fingerprint import fingerprint
from phi3v_data.sources.reads import Roots

ROOTS = Roots((("source", "/data/set"), ("unpacked", "/tmp/un packed")))

texts = st.text() | st.sampled_from(["/data/set", "/data/set/a.jpg", "/data/settled", "/tmp/un packed/b", "\ud800"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | texts
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(texts | st.integers(), inner),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values)
def test_the_fast_way_gives_the_same_digest(value: Any) -> None:
    fast = fingerprint(value, ROOTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_feed_plain", lambda *args: False)
        assert fingerprint(value, ROOTS) == fast


def test_a_digest_of_a_journal_stays_what_it_was() -> None:
    row = {"image": {"bytes": b"\xff\xd8", "path": None}, "text": "/data/set/a.jpg", "n": [1, 2.5, True]}
    assert fingerprint(row, ROOTS) == "cf56f298fa29c39b0f46477b7254d539"


def test_deep_and_other_values_still_have_one() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    assert fingerprint(deep, ROOTS) == fingerprint([deep], ROOTS)  # below the limit nothing is looked at
    assert fingerprint({1, 2}) == fingerprint({2, 1})
    assert fingerprint({"a": {1}}) != fingerprint({"a": {2}})
