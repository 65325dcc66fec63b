"""Anima's lineage: 2.9B is Anima with blocks inserted between its own, and 3.8B is 2.9B with more; widths and text encoder are the same.

Numbers of the inserted blocks, each in its own model's counting. 40 blocks: expand_manifest.json of
huggingface.co/Gazingstars123/Anima-2.9B. 52: insertion_positions in the metadata of huggingface.co/lylogummy/Anima-3.8B's checkpoint;
those who compared the weights of both, block by block, found the same (willmiao/ComfyUI-Lora-Manager#1104).
"""

ANIMA_BLOCKS = 28

LINEAGE = ((40, (2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36)), (52, (3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47)))
