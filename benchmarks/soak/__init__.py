"""What the service does under load for long, while the worst happens to it."""
