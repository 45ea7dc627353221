"""Changes of the parameters that leave a model's function as it is: scales and rotations of channels."""
