"""Gemma 3, on transformers' model class."""
