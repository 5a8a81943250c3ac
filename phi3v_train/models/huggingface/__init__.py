"""Parts that all families on transformers' own model classes share: processor, encoding, sizes, small models."""
