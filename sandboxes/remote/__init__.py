"""Sandboxes of other machines: the provider here, the host there, and what travels between them."""
