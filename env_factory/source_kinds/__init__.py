"""What a source can be, one file each; `env_factory.sources` is the door."""
