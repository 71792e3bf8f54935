"""Orders of generate jobs, by the kind of their candidates: checked, turned into a stream, and settled."""
