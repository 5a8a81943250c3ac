"""Versions of the libraries with which the families were verified."""

VERIFIED_WITH = {"transformers": "5.24.0", "torch": "2.13.0", "peft": "0.21.2", "trl": "1.16.0"}
"""The tests of `tests/models` and `benchmarks/models/matrix.py` passed with these."""
