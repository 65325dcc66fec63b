"""One node in place of four: words, strength, and a guided model."""

import json

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import family_and_depth, known_w
from ..model_patches.quoting import quoted
from ..model_patches.schedules import LayerSchedule
from .directions import encoded_direction
from .guidance import guided
from .presets import CUSTOM, positive_of, preset_named, presets, presets_that_can_be_read, schedule_of
from .queue_errors import checked, unmade
from .sockets import CATEGORY, Projection, check_sockets, inputs_of_run

NAME = "Modulation Guidance"
_SHOWN = ("positive", "positive_with_subject", "negative", "example")  # by web/preset_words.js
_LARGEST_STRENGTH = 10.0
_USUAL_W = 3.0  # of nearly every model whose w is known


class ModulationGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        known = presets_that_can_be_read()
        words = {name: {key: preset[key] for key in _SHOWN if key in preset} for name, preset in known.items()}
        return io.Schema(
            node_id="ModulationGuidance",
            display_name=NAME,
            category=CATEGORY,
            description="More detail, better quality, hands or colors: choose a preset, and put this node between the model loader (after "
            "LoRAs) and the sampler. It uses the layers and the guidance scale that are known for your model. As fast as without it. The "
            "same as Encode Guidance Direction and Apply Modulation Guidance, in one node.",
            search_aliases=[
                "guidance",
                "mod guidance",
                "detail",
                "details",
                "more detail",
                "add detail",
                "detailer",
                "sharpness",
                "sharpen",
                "quality",
                "flux quality",
                "better quality",
                "image quality",
                "anima",
                "anima mod guidance",
                "flux",
                "sd3",
                "aesthetics",
                "realism",
                "hands",
                "fix hands",
                "booru quality",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    lazy=True,
                    tooltip="The diffusion transformer to guide: FLUX.1, SD3.5, HiDream, HunyuanVideo; Anima and others with a projection.",
                ),
                io.Clip.Input(
                    "clip",
                    lazy=True,
                    tooltip="The text encoder of the model itself, e.g. Load CLIP (Dual) with type flux for FLUX.1. For a projection of "
                    "the CLIP + scales kind: CLIP-L alone, by Load CLIP (CLIPLoader).",
                ),
                io.Combo.Input(
                    "preset",
                    options=[*known, CUSTOM],
                    default=next(iter(known)),
                    extra_dict={"words": words},
                    tooltip=f"What to improve. Its words are shown below in gray. {CUSTOM}: your own words, in both boxes.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-_LARGEST_STRENGTH,
                    max=_LARGEST_STRENGTH,
                    step=0.05,
                    tooltip="How far to go. 1 suits every model: it multiplies the guidance scale w that is known for your model (FLUX.1 "
                    "3, SD3.5 2). 0: no guidance (a projection may still add your prompt). Negative: the opposite way. Too much burns the "
                    "image.",
                ),
                io.String.Input(
                    "subject",
                    default="",
                    tooltip="What the preset is about. counting: number and things (three apples). color: a purple apple. position: a dog "
                    "to the right of a bench. hands: whose hands (A boy), optional. The other presets ignore it.",
                ),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What you want. Empty: the words of the preset, shown in gray.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What you do not want. Empty: the words of the preset, shown in gray.",
                ),
                Projection.Input(
                    "projection",
                    optional=True,
                    lazy=True,
                    tooltip="Needed by models that get no text in their modulation (Anima, Cosmos, Wan, Qwen-Image ...), refused by all others. "
                    "From Load Pooled Projection or Distill Pooled Projection.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The guided model.")],
            not_idempotent=True,  # each tells of itself: the host must not give it what it kept of another node
        )

    @classmethod
    @override
    def validate_inputs(cls, preset=None):
        return checked(_settings_of, preset)

    @classmethod
    @override
    def check_lazy_status(cls, **inputs):
        _words(*(inputs[name] for name in ("preset", "subject", "positive", "negative")))
        return unmade(inputs)

    @classmethod
    @override
    def fingerprint_inputs(cls, preset, **others):
        return json.dumps(presets() if preset is None else presets().get(preset))  # the user's file may have changed; None: over a link

    @classmethod
    @override
    def execute(cls, model, clip, preset, strength, subject, positive, negative, projection=None) -> io.NodeOutput:
        check_sockets(cls, model=model, projection=projection)
        _check_strength(strength)
        ui = inputs_of_run(preset=preset, subject=subject)
        positive, negative = _words(preset, subject, positive, negative)
        w, schedule = _known_settings(preset, model, projection)
        return guided(cls, model, encoded_direction(cls, clip, positive, negative), strength * w, schedule, projection=projection, ui=ui)


def _words(preset: str, subject: str, positive: str, negative: str) -> tuple[str, str]:
    """(p+, p-): what is written, and where nothing is, the preset's."""
    if preset == CUSTOM:
        for name, words in (("positive", positive), ("negative", negative)):
            if not words.strip():
                raise ValueError(
                    f"{NAME}: {CUSTOM} needs both positive and negative, and {name} is empty. Write what is wanted and what is not, or "
                    "choose a preset."
                )
        return positive, negative
    settings = _settings_of(preset)
    return (positive if positive.strip() else positive_of(preset, subject, NAME), negative if negative.strip() else settings["negative"])


def _settings_of(preset: str) -> dict:
    return {} if preset == CUSTOM else preset_named(preset, NAME, CUSTOM)


def _check_strength(strength: float) -> None:
    if not -_LARGEST_STRENGTH <= strength <= _LARGEST_STRENGTH:
        raise ValueError(
            f"{NAME}: strength is {quoted(strength)}; it goes from {-_LARGEST_STRENGTH:g} to {_LARGEST_STRENGTH:g}, and 1 is what is "
            "known to work."
        )


def _known_settings(preset: str, model, projection) -> tuple[float, LayerSchedule | None]:
    """(w, schedule) at strength 1: the preset's own on the models it was found on, elsewhere what is known for the model."""
    settings = _settings_of(preset)
    w, (family, depth) = known_w(model, projection), family_and_depth(model)
    if settings.get("family") == family:
        fits = "layers" in settings or settings["start_layer"] < depth
        return settings["w"], schedule_of(settings) if fits else None
    is_for_all = "layers" in settings and "family" not in settings
    return (settings.get("w", _USUAL_W) if w is None else w), (schedule_of(settings) if is_for_all else None)
