"""Other people's task formats and what becomes of ours in them, one file each; `env_factory.exchange` is the door."""
