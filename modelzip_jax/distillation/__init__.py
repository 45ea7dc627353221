"""Students that learn from teachers: where the teaching comes from, and which examples it needs."""
