"""A small world: drawn scenes, checkers that read them back, and small models trained on them (see README.md)."""
