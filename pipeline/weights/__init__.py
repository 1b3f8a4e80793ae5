"""The stages that change weights and inputs in place of shapes, and their mathematics."""
