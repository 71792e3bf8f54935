"""One config-driven transformer."""
