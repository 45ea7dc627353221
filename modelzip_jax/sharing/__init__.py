"""Weight sharing: k-means codebooks, vector codebooks, and neurons that have their weights in common."""
