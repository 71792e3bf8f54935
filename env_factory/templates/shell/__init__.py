"""Families of small shell tasks whose answer has to be looked up."""
