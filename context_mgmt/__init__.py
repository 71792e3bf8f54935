"""What a model gets to see: chat format, token-exact transcript, folding."""
