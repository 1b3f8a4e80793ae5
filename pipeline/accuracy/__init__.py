"""How right a network is on a split."""
