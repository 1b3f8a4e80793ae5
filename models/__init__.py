"""What a network is: definition, tensors, rebuild by shapes, and the zoo."""
