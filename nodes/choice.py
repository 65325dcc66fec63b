"""The node that chooses a setting of guidance by the scores of its pictures."""

from comfy_api.latest import io
from typing_extensions import override

from ..model_patches.telling import Told, without_harm
from ..scoring.choice import TOLERANCE, choose
from .choice_diagram import choice_picture
from .labels import paired, settings_of
from .pictures import to_image
from .sockets import CATEGORY
from .telling import teller

_CHOOSE = "Choose Guidance"


class ChooseGuidance(io.ComfyNode):
    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="ChooseGuidance",
            display_name=_CHOOSE,
            category=CATEGORY,
            description="Chooses the setting of a sweep whose images have the most of what is wanted and keep what is to be kept, by scores; the "
            "plain image where none is better. Its w and start layer go on into Apply Modulation Guidance and Layer Schedule for the large image.",
            search_aliases=["modulation guidance", "choose w", "auto guidance", "best setting", "tune guidance", "automatic w"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The images of a sweep, from VAE Decode. One of them has to be plain: put 0 among its w_values."
                ),
                io.String.Input("labels", force_input=True, tooltip="One label for each, from Sweep Modulation Guidance."),
                io.Float.Input(
                    "wanted",
                    force_input=True,
                    tooltip="Scores of what guidance should raise, from Score Pictures: PickScore, beauty, or how well the words of what is wanted fit.",
                ),
                io.Float.Input(
                    "kept",
                    force_input=True,
                    tooltip="Scores of what guidance should not lower, from Score Pictures: how well your prompt is followed.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=TOLERANCE,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="The share of kept that may be lost against the plain image: 0.02 is 2%. More allows stronger guidance.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The image of the chosen setting."),
                io.String.Output("label", display_name="label", tooltip="The chosen setting, as the sweep calls it."),
                io.Float.Output(
                    "w", display_name="w", tooltip="For the w of Apply Modulation Guidance; 0 where the plain image was chosen."
                ),
                io.Int.Output("start_layer", display_name="start_layer", tooltip="For the start_layer of Layer Schedule."),
                io.Image.Output(
                    "diagram",
                    display_name="diagram",
                    tooltip="Every setting, wanted against kept, the plain and the chosen one marked, with a table and the reason.",
                ),
            ],
        )

    @classmethod
    @override
    def execute(cls, images, labels, wanted, kept, tolerance) -> io.NodeOutput:
        pictures = paired(_CHOOSE, images, labels)
        settings = settings_of(_CHOOSE, [label for image, label in pictures for _ in image])
        for name, scores in (("wanted", wanted), ("kept", kept)):
            if len(scores) != len(settings):
                raise ValueError(
                    f"{_CHOOSE}: {name} has {len(scores)} scores for {len(settings)} images. Connect Score Pictures, which has scored the same images."
                )
        try:
            choice = choose(settings, wanted, kept, tolerance[0])
        except ValueError as error:
            raise ValueError(f"{_CHOOSE}: {error}") from None
        without_harm(teller(cls), Told("\n".join((choice.why, *choice.notes)), warns=False))
        chosen = choice.chosen.setting
        image = next(image for image, label in pictures if label == chosen.label)
        return io.NodeOutput(image, chosen.label, chosen.w, chosen.start_layer, to_image(choice_picture(choice, tolerance[0])))
