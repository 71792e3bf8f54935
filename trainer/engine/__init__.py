"""The embedded inference engine: continuous batching behind SGLang's HTTP format."""
