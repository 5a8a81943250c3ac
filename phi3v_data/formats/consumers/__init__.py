"""The tools that read chat files, one module each, found by being there: how each treats a bad row."""
