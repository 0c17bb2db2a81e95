"""Matrix-based information theory: pure functions, tensors in, tensors out, in bits."""
