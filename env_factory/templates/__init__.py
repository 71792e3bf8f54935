"""What the parametric synthesizers make tasks of: programs, pages, services and words, drawn from a seed."""
