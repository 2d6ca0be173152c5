"""How signal and gradient travel through one forward and backward pass."""
