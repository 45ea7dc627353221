"""Entropy coding: histograms, interleaved rANS, byte planes and the container that holds them."""
