"""The numbers behind every plot: how large changes are, and of how many directions."""
