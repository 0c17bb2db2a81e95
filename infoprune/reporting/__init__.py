"""One self-contained page per run."""
