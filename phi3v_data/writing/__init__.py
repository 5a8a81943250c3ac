"""Writing a directory: plan, numbered parts, pictures stored once, a journal to resume from, and publishing whole."""
