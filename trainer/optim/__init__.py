"""Muon, AdamW, schedules."""
