"""Tutorials and documented examples: read, walked through, and their effects told as checks."""
