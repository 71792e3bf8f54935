"""Dishonest attempts that make sense against any task: shell scripts run as the agent, each of which must score 0."""
