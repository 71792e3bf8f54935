"""Makes environments out of sources, and proves them."""
