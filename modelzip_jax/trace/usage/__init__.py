"""Which parameter meets which activation, where, and along which axes."""
