"""What is done to a network, and who conducts it."""
