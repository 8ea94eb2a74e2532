"""What the tunnel decides: pure state machines; bytes and the time come in as arguments."""
