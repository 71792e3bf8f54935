"""Images of one machine: Dockerfiles and archives in, content-addressed layers out."""
