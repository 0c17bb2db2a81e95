"""From findings to kept channels under a budget."""
