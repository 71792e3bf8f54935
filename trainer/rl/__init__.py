"""Advantages, losses and batches of the GRPO family."""
