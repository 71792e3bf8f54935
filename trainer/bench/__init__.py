"""Speed, memory, exactness and learning of the trainer beside its peers, in one run."""
