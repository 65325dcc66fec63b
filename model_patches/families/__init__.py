"""The model families: one file each, listed here."""

from torch import nn

from .anima import ANIMA
from .base import OWN_TEXT, RESULT, BlockInput, Call, Family, Injection, OncePerPrompt, TextContext, TextPath, TextTokens
from .chroma import CHROMA
from .cosmos1 import COSMOS1
from .cosmos_predict2 import COSMOS_PREDICT2
from .flux import FLUX
from .flux2 import FLUX2
from .hidream import HIDREAM
from .hunyuan_dit import HUNYUAN_DIT
from .hunyuan_video import HUNYUAN_VIDEO
from .hunyuan_video15 import HUNYUAN_VIDEO15
from .kandinsky5 import KANDINSKY5
from .ltxv import LTXV
from .lumina2 import LUMINA2
from .mochi import MOCHI
from .newbie import NEWBIE
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .wan import WAN

# The first that matches is taken: Anima's class is one of Cosmos-Predict2's.
FAMILIES: tuple[Family, ...] = (
    FLUX, SD3, HIDREAM, HUNYUAN_VIDEO, KANDINSKY5, NEWBIE, MOCHI, HUNYUAN_DIT,
    ANIMA, COSMOS_PREDICT2, COSMOS1, WAN, QWEN_IMAGE, FLUX2, LUMINA2, CHROMA, LTXV, HUNYUAN_VIDEO15,
)

__all__ = [
    "FAMILIES", "OWN_TEXT", "RESULT", "BlockInput", "Call", "Family", "Injection", "OncePerPrompt", "TextContext", "TextPath", "TextTokens",
    "family_of",
]


def family_of(diffusion_model: nn.Module, model_name: str) -> Family:
    """The family of a host model; model_name is the host's name for it. Raises ValueError with both names if there is none."""
    for family in FAMILIES:
        if family.matches(diffusion_model):
            return family
    reading, blind = (", ".join(family.name for family in FAMILIES if (family.text is None) == is_blind) for is_blind in (False, True))
    raise ValueError(
        f"Modulation guidance works on diffusion transformers that have pooled text in their modulation ({reading}), and with a pooled "
        f"projection on text-blind ones ({blind}). This model is a {model_name} (class {type(diffusion_model).__name__}), which is "
        "not among them. Connect a model of a supported family."
    )
