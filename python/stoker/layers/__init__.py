"""Layers that the models share. Each writes into tensors it is given; none allocates in a step."""
