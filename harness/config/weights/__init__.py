"""Files of weights as their headers tell: tensors by name and shape, and what they are of. No torch."""
