"""The service that breaks: how it is while healthy, and what destroys it."""
