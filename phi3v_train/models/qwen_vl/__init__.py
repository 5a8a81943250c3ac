"""Qwen2.5-VL, Qwen3-VL and Qwen3.5, on transformers' model classes."""
