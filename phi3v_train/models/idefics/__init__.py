"""Idefics3 and SmolVLM, on transformers' model classes."""
