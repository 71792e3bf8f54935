"""Task formats of others. What comes in is a draft like any other: unproven until the gates ran here."""
