"""The laws that every transform obeys, as one call for ours and for a user's own."""
