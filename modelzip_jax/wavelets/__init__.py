"""Wavelets: filters, transforms of arrays and of networks, and where they pay."""
