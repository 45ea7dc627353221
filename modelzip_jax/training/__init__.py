"""Training: one readable loop, and what it is made of. Knows nothing of compression."""
