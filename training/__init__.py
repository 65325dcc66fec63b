"""Learning on a frozen model from what the model itself makes: what is taught, by whom, and the loop of it.

Imports pooled_proj and model_patches, never the reverse.
"""
