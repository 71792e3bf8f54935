"""What a draft has to stand before it is an environment: proofs by running, comparisons, and what never passes."""
