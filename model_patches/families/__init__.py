"""The model families: one file each, listed here."""

from torch import nn

from .base import Family, ModulationInput
from .flux import FLUX

FAMILIES: tuple[Family, ...] = (FLUX,)

__all__ = ["FAMILIES", "Family", "ModulationInput", "family_of"]


def family_of(diffusion_model: nn.Module) -> Family:
    """The family of a host model class. Raises ValueError naming the class if none is known."""
    for family in FAMILIES:
        if family.matches(diffusion_model):
            return family
    raise ValueError(
        f"Modulation guidance needs a diffusion transformer whose modulation holds pooled text; "
        f"this model's class is {type(diffusion_model).__name__}. Supported: {', '.join(f.name for f in FAMILIES)}."
    )
