"""Measurements of the factory beside peers, in one run."""
