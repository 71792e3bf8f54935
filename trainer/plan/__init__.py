"""What a model costs before anything is bought: parameters, FLOPs, bytes, and what more compute would bring. No torch."""
