"""Nodes that make guidance directions."""

import json
import math

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.directions import EncodedPrompt, GuidanceDirection, PromptPair, combine
from ..model_patches.quoting import quoted
from .presets import USER_FILE, positive_of, preset_named, presets, presets_that_can_be_read, schedule_of
from .queue_errors import checked
from .sockets import CATEGORY, Direction, Schedule, check_sockets

_PRESET = "Guidance Preset"
_OF_SEVERAL = "For a direction of several, make a direction of each and add them up with Combine Guidance Directions."


class EncodeGuidanceDirection(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="EncodeGuidanceDirection",
            display_name="Encode Guidance Direction",
            category=CATEGORY,
            description="Turns two short prompts, what you want (positive) and what you do not want (negative), into a direction for Apply "
            "Modulation Guidance. They only steer the modulation of the model; your own prompt still goes through attention, unchanged.",
            search_aliases=[
                "modulation guidance",
                "guidance prompt",
                "encode prompt",
                "positive negative direction",
                "quality direction",
                "clip direction",
            ],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder of the model itself, e.g. Load CLIP (Dual) with type flux for FLUX.1. For a projection of "
                    "the CLIP + scales kind: CLIP-L alone, by Load CLIP (CLIPLoader).",
                ),
                io.String.Input(
                    "positive",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Ultra-detailed, photorealistic, cinematic",
                    tooltip="What you want (p+). A few words are enough.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Low-res, flat, cartoonish",
                    tooltip="What you do not want (p-). Best is the opposite of the positive, worded the same way.",
                ),
            ],
            outputs=[Direction.Output("direction", tooltip="The direction from negative to positive.")],
        )

    @classmethod
    @override
    def execute(cls, clip, positive, negative) -> io.NodeOutput:
        return io.NodeOutput(encoded_direction(cls, clip, positive, negative))


class GuidanceDirectionFromConditioning(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="GuidanceDirectionFromConditioning",
            display_name="Guidance Direction from Conditioning",
            category=CATEGORY,
            description="Makes a guidance direction from two conditionings, for text encoders that have an encode node of their own (e.g. "
            "CLIPTextEncodeFlux).",
            search_aliases=["modulation guidance", "conditioning to direction"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What you want (p+), encoded. One prompt only."),
                io.Conditioning.Input("negative", tooltip="What you do not want (p-), encoded. One prompt only."),
            ],
            outputs=[Direction.Output("direction", tooltip="The direction from negative to positive.")],
        )

    @classmethod
    @override
    def execute(cls, positive, negative) -> io.NodeOutput:
        check_sockets(cls, positive=positive, negative=negative)
        pair = PromptPair(
            *(
                from_conditioning(conditioning, f"Guidance Direction from Conditioning: {side}", _OF_SEVERAL)
                for side, conditioning in (("positive", positive), ("negative", negative))
            )
        )
        return io.NodeOutput(GuidanceDirection((pair,)))


class CombineGuidanceDirections(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        directions = io.Autogrow.TemplatePrefix(
            Direction.Input("direction", tooltip="One of the directions to add up."), prefix="direction", min=1, max=16
        )
        return io.Schema(
            node_id="CombineGuidanceDirections",
            display_name="Combine Guidance Directions",
            category=CATEGORY,
            description="Adds several guidance directions, each with its own weight, into one.",
            search_aliases=["modulation guidance", "mix directions", "sum directions", "merge directions"],
            inputs=[
                io.Autogrow.Input(
                    "directions",
                    template=directions,
                    tooltip="The directions to add up, encoded or learned; a new input appears as you connect one.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One number per direction, in order, separated by commas, e.g. 1, 0.5. A negative weight reverses its "
                    "direction. Empty: 1 each.",
                ),
            ],
            outputs=[Direction.Output("direction", tooltip="The weighted sum of the directions.")],
        )

    @classmethod
    @override
    def validate_inputs(cls, weights=None, directions=None):
        return checked(_weights, weights, directions)

    @classmethod
    @override
    def execute(cls, directions, weights) -> io.NodeOutput:
        check_sockets(cls, **directions)
        connected = [directions[name] for name in sorted(directions, key=lambda name: int(name.removeprefix("direction")))]
        return io.NodeOutput(combine(connected, _weights(weights, directions)))


class GuidancePreset(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        known = presets_that_can_be_read()
        sources = "\n".join(f"{name}: {preset['source']}" for name, preset in known.items() if "source" in preset)
        return io.Schema(
            node_id="GuidancePreset",
            display_name=_PRESET,
            category=CATEGORY,
            description="Prompt pairs and settings to start from: from the paper, and from users. Connect positive and negative to Encode "
            "Guidance Direction, w and schedule to Apply Modulation Guidance. Your own presets go into "
            f"{USER_FILE} in ComfyUI's user folder.",
            search_aliases=[
                "modulation guidance",
                "direction preset",
                "quality preset",
                "detail",
                "realism",
                "aesthetics",
                "hands",
                "counting",
                "booru quality",
            ],
            inputs=[
                io.Combo.Input("preset", options=list(known), tooltip=f"What to improve, and where it comes from.\n{sources}"),
                io.String.Input(
                    "subject",
                    default="",
                    tooltip="What the preset is about. counting: number and things (three apples). color: a purple apple. position: a dog "
                    "to the right of a bench. hands: whose hands (A boy), optional. The other presets ignore it.",
                ),
            ],
            outputs=[
                io.String.Output("positive", tooltip="What you want (p+)."),
                io.String.Output("negative", tooltip="What you do not want (p-)."),
                io.Float.Output("w", tooltip="Suggested guidance scale, for the w input."),
                io.Int.Output(
                    "start_layer", tooltip="Suggested first guided layer, for a model with as many layers as the one named in the preset."
                ),
                Schedule.Output(
                    "schedule",
                    tooltip="The layers of the preset, in proportion to the number of layers of your model. If it names none: every layer "
                    "from its start layer on.",
                ),
            ],
        )

    @classmethod
    @override
    def validate_inputs(cls, preset=None):
        return checked(preset_named, preset, _PRESET)

    @classmethod
    @override
    def fingerprint_inputs(cls, preset, subject=""):
        return json.dumps(presets() if preset is None else presets().get(preset))  # the user's file may have changed; None: over a link

    @classmethod
    @override
    def execute(cls, preset, subject) -> io.NodeOutput:
        positive = positive_of(preset, subject, _PRESET)
        settings = preset_named(preset, _PRESET)
        return io.NodeOutput(positive, settings["negative"], float(settings["w"]), settings["start_layer"], schedule_of(settings))


def encoded_direction(node: type[io.ComfyNode], clip, positive: str, negative: str) -> GuidanceDirection:
    """From negative to positive, as that encoder has them. Raises ValueError, beginning with the node's name, where it is none."""
    if clip is None:
        raise ValueError(
            f"{node.define_schema().display_name}: there is no text encoder on the clip input. If it comes from a checkpoint loader, "
            "the checkpoint holds none; load it with a CLIP loader."
        )
    check_sockets(node, clip=clip)
    name = node.define_schema().display_name
    return GuidanceDirection((PromptPair(*(_encoded(clip, text, name) for text in (positive, negative))),))


def _encoded(clip, text: str, node: str) -> EncodedPrompt:
    extras = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)
    prompt = EncodedPrompt(pooled=extras.pop("pooled_output"), tokens=extras.pop("cond"), extras=extras)
    return _of_numbers(prompt, f"{node}: {quoted(text)}")


def from_conditioning(conditioning, input_name: str, of_several: str) -> EncodedPrompt:
    """The one prompt of a conditioning. Raises ValueError if it holds several, or no numbers.

    input_name begins the sentence, of_several says what to do with several.
    """
    if len(conditioning) != 1:
        raise ValueError(f"{input_name} holds {len(conditioning)} prompts; it takes one. {of_several}")
    tokens, extras = conditioning[0]
    extras = dict(extras)
    return _of_numbers(EncodedPrompt(pooled=extras.pop("pooled_output", None), tokens=tokens, extras=extras), input_name)


def _of_numbers(prompt: EncodedPrompt, told: str) -> EncodedPrompt:
    if all(tensor is None or tensor.isfinite().all() for tensor in (prompt.pooled, prompt.tokens)):
        return prompt
    raise ValueError(
        f"{told}: the text encoder made NaN or infinity of it, and the image would be NaN too. Load the encoder's file in another precision, "
        "or another file."
    )


def _weights(text: str, directions: dict) -> list[float]:
    """One number per direction; 1 each for an empty text."""
    if not text.strip():
        return [1.0] * len(directions)
    count = text.count(",") + 1
    if count != len(directions):
        raise ValueError(
            f"Combine Guidance Directions: {count} weights ({quoted(text)}) for {len(directions)} directions. "
            "Give one per direction, or leave weights empty."
        )
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"Combine Guidance Directions: the weight {quoted(part.strip())} is not a number. Write e.g. 1, 0.5")
        numbers.append(number)
    return numbers
