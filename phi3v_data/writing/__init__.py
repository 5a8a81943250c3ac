"""Writing a directory: plan, numbered parts, images stored once, a journal to resume from, and publishing whole."""
