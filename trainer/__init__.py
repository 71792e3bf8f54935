"""Where weights change: model, optimizers, data, stages, RL and the embedded engine. The only room with torch."""
