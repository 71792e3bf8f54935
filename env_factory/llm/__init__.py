"""Synthesizers that ask a language model. Its answer is a draft like any other: gates alone decide about it."""
