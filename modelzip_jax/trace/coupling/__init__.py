"""What must be removed together."""
