"""From a model and a split to predictions, and from predictions to scores.

    prompts -> generate (batched, greedy) -> predictions.jsonl -> metrics -> eval.json, confusion.png

`records`, `metrics`, `confusion` and `submission` work on `predictions.jsonl` alone and need no torch.
"""
