"""Programs that run inside a screening sandbox, on the Python there; nothing here is imported by the host."""
