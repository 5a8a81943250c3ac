"""Models of transformers that are not among the verified families."""
