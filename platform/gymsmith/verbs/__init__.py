"""What `gymsmith VERB` does, a file per group of verbs."""
