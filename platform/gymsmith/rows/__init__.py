"""Tables, the database beneath them, and one file of queries per kind of row. `gymsmith.store` joins them into the Store."""
