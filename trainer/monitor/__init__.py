"""Watches a run: alerts that name a suspect, speed, gradient noise, and where the numbers go."""
