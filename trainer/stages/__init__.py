"""Pre-training, SFT, DPO and RL as short functions over one loop."""
