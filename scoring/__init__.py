"""Scorers of pictures, and the choice of a setting by their scores; nothing of nodes.

A scorer is anything with `score`, see `scorers`. Ours read a CLIP model as transformers saves it, see `clip_folder`.
"""
