"""What talks to the world: listeners, dialled connections, TLS."""
