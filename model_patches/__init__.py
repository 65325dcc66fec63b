"""The core: directions, schedules, guidance, and how each model family is reached.

Nothing here knows of nodes or of the editor.
"""
