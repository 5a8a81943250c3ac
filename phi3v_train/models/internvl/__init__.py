"""InternVL, on transformers' model class."""
