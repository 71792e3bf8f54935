"""Number formats of products and of weights: bfloat16, FP8, INT4."""
