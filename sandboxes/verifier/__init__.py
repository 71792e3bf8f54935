"""Programs that the host copies into a verifier's sandbox. They are data to the host, never imported by it."""
