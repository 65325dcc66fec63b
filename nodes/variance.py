"""The node that scales the variance of the text tokens."""

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.guidance import check_percents
from ..model_patches.quoting import quoted
from ..model_patches.variance import TOKENS, prompt_tokens, scale_variance
from .queue_errors import unmade
from .sockets import CATEGORY, Schedule, check_sockets, window_inputs
from .telling import teller


class ScaleTextVariance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        more_prompts = io.Autogrow.TemplatePrefix(
            io.String.Input("prompt", optional=True, tooltip="The text of one more prompt."), prefix="prompt", min=0, max=16
        )
        return io.Schema(
            node_id="ScaleTextVariance",
            display_name="Scale Text Variance",
            category=CATEGORY,
            description="Meant to bring out rare concepts: spreads the text tokens further from their mean before each block where text "
            "and image attend to each other. For FLUX.1, FLUX.2, Chroma, SD3 / SD3.5, HiDream, HunyuanVideo (1.5 too), Qwen-Image, "
            "AuraFlow, CogVideoX and Mochi. Can be combined with Apply Modulation Guidance; used twice, the scales multiply.",
            search_aliases=[
                "rare concepts",
                "text variance",
                "variance scale-up",
                "prompt strength",
                "unusual combinations",
                "modulation guidance",
            ],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="A diffusion transformer with joint attention (MM-DiT)."),
                io.Float.Input(
                    "scale",
                    default=1.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How far the tokens move from their mean. 1: no change. 1.5: the best trade-off, by the one source there is. "
                    "2: common prompts get worse. 3: all prompts get worse.",
                ),
                *window_inputs("scaling"),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="How strongly each layer is scaled: with weight s its scale is 1 + s (scale - 1). Not connected: all joint "
                    "blocks (FLUX.1: the 19 double blocks). Blocks where text and image share one stream (FLUX.1: single blocks) only if "
                    "the schedule gives them weight. Each block scales again what the one before has scaled; to scale once, give weight to "
                    "layer 0 alone.",
                ),
                io.Combo.Input(
                    "tokens",
                    options=list(TOKENS),
                    default="prompt",
                    optional=True,
                    advanced=True,
                    tooltip="prompt: only the tokens of the prompt, not the padding. HunyuanVideo, Qwen-Image and Mochi tell their padding "
                    "by a mask, FLUX.2 by zeros; for FLUX.1, SD3 and HiDream connect clip, prompt and negative_prompt, so that the tokens "
                    "can be counted (otherwise padding is scaled too). all: padding too.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    lazy=True,
                    advanced=True,
                    tooltip="Only for FLUX.1, SD3 and HiDream: the text encoder of your prompts, to tell prompt tokens from padding and "
                    "from what Redux adds. Each text is encoded once more, to know which conditioning holds it.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    advanced=True,
                    tooltip="With clip: the text of your prompt, exactly as in CLIP Text Encode.",
                ),
                io.String.Input(
                    "negative_prompt",
                    optional=True,
                    force_input=True,
                    advanced=True,
                    tooltip="With clip: the text of the negative prompt. Not connected: empty.",
                ),
                io.Autogrow.Input(
                    "prompts",
                    template=more_prompts,
                    optional=True,
                    tooltip="With clip: the texts of all other prompts you sample with (combined, for regions, for parts of the sampling); "
                    "a new input appears as you connect one.",
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The model with scaled text tokens.")],
            not_idempotent=True,  # each tells of itself: the host must not give it what it kept of another node
        )

    @classmethod
    @override
    def check_lazy_status(cls, **inputs):
        check_percents(inputs["start_percent"], inputs["end_percent"])
        return unmade(inputs)

    @classmethod
    @override
    def execute(
        cls,
        model,
        scale,
        start_percent,
        end_percent,
        schedule=None,
        tokens="prompt",
        clip=None,
        prompt=None,
        negative_prompt=None,
        prompts=None,
    ) -> io.NodeOutput:
        check_sockets(cls, model=model, schedule=schedule, clip=clip)
        texts = _texts(tokens, clip, prompt, negative_prompt, prompts or {})
        counted = prompt_tokens(model, clip, texts) if texts else ()
        return io.NodeOutput(scale_variance(model, scale, schedule, start_percent, end_percent, tokens == "all", counted, teller(cls)))


def _texts(tokens, clip, prompt, negative_prompt, prompts) -> list[str]:
    """The texts whose tokens are to be counted, none if nothing is connected for that."""
    if tokens not in TOKENS:
        raise ValueError(f"Scale Text Variance: tokens is {quoted(tokens)}; choose {' or '.join(TOKENS)}.")
    if clip is None and prompt is None and negative_prompt is None and not prompts:
        return []
    if tokens == "all":
        raise ValueError(
            "Scale Text Variance: tokens is all, so there is nothing to count. Disconnect clip and the prompts, or choose prompt."
        )
    if clip is None or prompt is None:
        missing = "clip" if clip is None else "prompt"
        raise ValueError(f"Scale Text Variance: counting the prompt's tokens takes clip and prompt, and {missing} is not connected.")
    return [prompt, negative_prompt or "", *prompts.values()]
