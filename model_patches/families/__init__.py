"""The model families: one file each, listed here."""

from torch import nn

from .base import Family, ModulationInput
from .flux import FLUX

FAMILIES: tuple[Family, ...] = (FLUX,)

__all__ = ["FAMILIES", "Family", "ModulationInput", "family_of"]


def family_of(diffusion_model: nn.Module, model_name: str) -> Family:
    """The family of a host model; model_name is the host's name for it. Raises ValueError with both names if there is none."""
    for family in FAMILIES:
        if family.matches(diffusion_model):
            return family
    raise ValueError(
        f"Modulation guidance works on diffusion transformers that have pooled text in their modulation: "
        f"{', '.join(family.name for family in FAMILIES)}. This model is a {model_name} (class {type(diffusion_model).__name__}), "
        "which is not among them: UNets have no such modulation, and text-blind transformers no pooled text in it. "
        "Connect a model of a supported family."
    )
