"""Files that travel with an export: they run inside `transformers`, without this package."""
