"""Files of tensors: safetensors and torch pickles read without running or believing them, and safetensors written.

Whatever a file holds, `opened` takes time and memory in proportion to its size, and raises nothing but ValueError, whose text follows
the file's name. Nothing of a pickle is executed, no file is mapped into memory, and only the tensors that are asked for are read.
"""

from .checks import check_family, check_finite, check_record, listed, more, of_another_version
from .opening import TensorFile, opened
from .stored import Stored
from .text import bounded_json, shown
from .writing import can_be_written, write

__all__ = [
    "Stored",
    "TensorFile",
    "bounded_json",
    "can_be_written",
    "check_family",
    "check_finite",
    "check_record",
    "listed",
    "more",
    "of_another_version",
    "opened",
    "shown",
    "write",
]
