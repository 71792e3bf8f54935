"""Pages that nobody trusts, rendered in sandboxes of their own."""
