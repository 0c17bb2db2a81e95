"""The steps of a recipe, in their order: one file each."""
