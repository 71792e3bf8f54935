"""Synthesizers: one file per way of making a draft out of a source."""
