"""LLaVA-NeXT and LLaVA-OneVision, on transformers' model classes."""
