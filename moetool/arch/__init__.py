"""What the tensors mean: names, layouts and shapes as data."""

from moetool.arch.args import ModelArgs
from moetool.arch.recognize import Recognized, recognize, recognize_part
from moetool.arch.schema import Architecture, Cell, Convention, Role, Slot, StoredTensor, expand

__all__ = [
    "Architecture",
    "Cell",
    "Convention",
    "ModelArgs",
    "Recognized",
    "Role",
    "Slot",
    "StoredTensor",
    "expand",
    "recognize",
    "recognize_part",
]
