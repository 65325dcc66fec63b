"""What is compared in effect.py: each condition is one way to wire the pack's nodes."""

from dataclasses import dataclass

SCHEDULES = {  # name -> node and inputs, for the small world's 4 double + 8 single = 12 layers
    "last 4 layers x 0.25": ("GuidanceLayerSchedule", {"start_layer": 0, "taper_layers": 4, "taper_scale": 0.25}),
    "ramp 0 to 1": ("GuidanceLayerScheduleCurve", {"curve": [(0.0, 0.0), (1.0, 1.0)]}),
    "double blocks only": ("GuidanceLayerScheduleText", {"layers": "0-3: 1"}),
    "first 2 layers only": ("GuidanceLayerScheduleText", {"layers": "0-1: 1"}),
}
SHARPNESS = ("sharp, in sharp focus", "blurred, out of focus")
WEIGHTS = (0.5, 1.0, 2.0, 3.0, 6.0)
START_LAYERS = (0, 2, 4, 6)
NORM_KEPT_WEIGHTS = (2.0, 3.0, 6.0)


@dataclass(frozen=True)
class Condition:
    """pooled: the pooled vector the model gets plainly, on all rows of CFG: the "prompt"'s own, "zero"s, or the "empty" prompt's.

    preset: a Guidance Preset, whose subject is the prompt where it needs one; or sides: p+ and p- written out.
    learned: a direction that was learned, by its name among the files', in place of both.
    w: guidance scale; with none of these there is no guidance.
    schedule: one of SCHEDULES, or what Layer Schedule (Text) reads; "" for all layers from start_layer on.
    words: put after the prompt itself.
    variance: the scale of Scale Text Variance.
    base: on a text-blind model, whether its projection is given the prompt's own pooled text beside the direction.
    rows: the rows of CFG that are guided, as Apply Modulation Guidance names them.
    since: when guidance begins, from 0 to 1 of sampling.
    """

    pooled: str = "prompt"
    preset: str = ""
    sides: tuple[str, str] | tuple[()] = ()
    learned: str = ""
    w: float = 0.0
    start_layer: int = 0
    schedule: str = ""
    keep_norm: bool = False
    words: str = ""
    variance: float = 1.0
    base: bool = False
    rows: str = "auto"
    since: float = 0.0

    @property
    def guided(self) -> bool:
        return bool(self.preset or self.sides or self.learned)

    @property
    def name(self) -> str:
        if self.words:
            return f'plain, "{self.words}" in the prompt'
        if self.variance != 1:
            return f"text variance x {self.variance:g}"
        if not self.guided:
            return {"prompt": "plain", "zero": "pooled zeroed", "empty": "pooled of the empty prompt"}[self.pooled]
        if self.base and not self.w:
            return "pooled text alone"
        layers = self.schedule or f"start {self.start_layer}"
        rest = [", norm kept"] * self.keep_norm + [", pooled text too"] * self.base + [f", rows {self.rows}"] * (self.rows != "auto")
        rest += [f", from {self.since:.0%} of sampling"] * (self.since > 0)
        direction = f"learned {self.learned}" if self.learned else self.preset or self.sides[0]
        return f"{direction}, w {self.w:g}, {layers}{''.join(rest)}"


def schedule_of(condition: Condition) -> tuple[str, dict]:
    """The node that makes it, and its inputs."""
    if not condition.schedule:
        return "GuidanceLayerSchedule", {"start_layer": condition.start_layer}
    return SCHEDULES.get(condition.schedule, ("GuidanceLayerScheduleText", {"layers": condition.schedule}))


PLAIN = Condition()
ZEROED = Condition(pooled="zero")
EMPTY = Condition(pooled="empty")
IN_WORDS = Condition(words="highly detailed")  # what guidance for detail is to be compared with


def complexity(w: float, start_layer: int = 0, **options) -> Condition:
    return Condition(preset="complexity", w=w, start_layer=start_layer, **options)


def of_set(name: str) -> list[Condition]:
    """The conditions measured on a set of prompts, plain first."""
    if name == "general":
        return [
            PLAIN,
            ZEROED,
            EMPTY,
            IN_WORDS,
            *(complexity(w, start) for start in START_LAYERS for w in WEIGHTS),
            complexity(-2.0),
            *(complexity(w, keep_norm=True) for w in NORM_KEPT_WEIGHTS),
            *(complexity(3.0, schedule=schedule) for schedule in SCHEDULES),
            *(Condition(preset="aesthetics", w=w) for w in (1.0, 3.0)),
            *(Condition(sides=SHARPNESS, w=w) for w in (1.0, 3.0)),
        ]
    if name == "long":
        return [PLAIN, ZEROED]
    return [PLAIN, ZEROED, *(Condition(preset=name, w=w, start_layer=start) for start in (0, 4) for w in (1.0, 3.0))]
