"""The model families: one file each, listed here."""

from ..host_model import HostModel
from .anima import ANIMA
from .auraflow import AURAFLOW
from .base import Family
from .blocks import RESULT, BlockInput, Injection
from .call import Call, OncePerPrompt, Sampling
from .chroma import CHROMA
from .cogvideox import COGVIDEOX
from .cosmos1 import COSMOS1
from .cosmos_predict2 import COSMOS_PREDICT2
from .ernie_image import ERNIE_IMAGE
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
from .omnigen2 import OMNIGEN2
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sd3 import SD3
from .text import OWN_TEXT, Counting, NoText, TextContext, TextPath, TextTokens
from .wan import WAN

FAMILIES: tuple[Family, ...] = (
    FLUX,
    SD3,
    HIDREAM,
    HUNYUAN_VIDEO,
    KANDINSKY5,
    NEWBIE,
    MOCHI,
    HUNYUAN_DIT,
    ANIMA,
    COSMOS_PREDICT2,
    COSMOS1,
    WAN,
    QWEN_IMAGE,
    FLUX2,
    LUMINA2,
    CHROMA,
    LTXV,
    HUNYUAN_VIDEO15,
    AURAFLOW,
    ERNIE_IMAGE,
    OMNIGEN2,
    PIXART,
    COGVIDEOX,
)

__all__ = [
    "FAMILIES",
    "OWN_TEXT",
    "RESULT",
    "BlockInput",
    "Call",
    "Counting",
    "Family",
    "Injection",
    "NoText",
    "OncePerPrompt",
    "Sampling",
    "TextContext",
    "TextPath",
    "TextTokens",
    "family_of",
    "refuse_wrapped",
]


def family_of(host: HostModel) -> Family:
    """The family of a host model. Raises ValueError with its names if there is none."""
    for family in FAMILIES:
        if family.has(host):
            return family
    refuse_wrapped(host)
    reading, blind = (", ".join(family.name for family in FAMILIES if (family.text is None) == is_blind) for is_blind in (False, True))
    raise ValueError(
        f"Modulation guidance works on diffusion transformers that have pooled text in their modulation ({reading}), and with a pooled "
        f"projection on text-blind ones ({blind}). This model is a {host.name} (class {host.cls.__name__}), which is "
        "not among them. Connect a model of a supported family."
    )


def refuse_wrapped(host: HostModel) -> None:
    """Raises ValueError, with what to load instead, for a class that only wraps another library's model in one module (Nunchaku's FLUX)."""
    inside = list(host.diffusion_model.children())
    is_the_hosts = any(base.__module__.startswith("comfy.") for base in host.cls.__mro__)
    if len(inside) == 1 and not is_the_hosts:
        raise ValueError(
            f"This model is a {host.name}, but its class {host.cls.__name__} is not the host's: it wraps another library's "
            f"{type(inside[0]).__name__}, whose blocks cannot be reached one by one. Load the same model in a form that the host runs "
            "itself: as safetensors (fp8 too) or GGUF."
        )
