"""Projections that add a pooled text path to models that have none: the network, its files, and how guidance uses it.

Nothing here knows of nodes or of the editor.
"""
