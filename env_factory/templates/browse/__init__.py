"""Offline collections of pages: what is told in them, and the tools that read them."""
