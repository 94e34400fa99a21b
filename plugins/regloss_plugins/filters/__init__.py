"""Gaussian filters in places and colours, and the weights of pairs of pixels that dense regularizers make of them."""
