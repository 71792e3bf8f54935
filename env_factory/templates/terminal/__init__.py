"""Templates of terminal tasks: one file for each room of the work that people do on machines."""
