"""The dashboard's pages, one file per section: each turns what the store holds into the context of a template."""
