"""The words (schema), the memory (store) and the switchboard (jobs, api, cli) of Gymsmith."""
