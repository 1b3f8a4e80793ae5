"""Training and fine-tuning under the constraints that weights express."""
