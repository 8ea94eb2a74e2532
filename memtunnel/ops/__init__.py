"""What operators see: metrics and the admin port."""
