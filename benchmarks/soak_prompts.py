"""The prompts of soak.py: right ones of every kind of our nodes that samples, long ones, and ones that must be refused."""

from tools.small_models import CFG, DIFFUSION_MODEL, PROJECTION, SIZE, TEXT_BLIND, TEXT_ENCODER, VAE

STEPS, LONG = 2, 500  # sampling steps
TEXTS = ["two red circles", "a large blue square", "three green crosses, sharp", "a yellow triangle above a cyan circle"]
WORDS = ["Extremely complex, the highest quality", "Very simple, no details at all", "sharp, in sharp focus", "blurred, out of focus", ""]


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def graph(patch, seed, text="two red circles", steps=STEPS, text_blind=False):
    """A prompt whose model goes through the node `patch` on its way to the sampler."""
    return {
        "model": node("UNETLoader", unet_name=TEXT_BLIND if text_blind else DIFFUSION_MODEL, weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name=TEXT_ENCODER, type="sd3" if text_blind else "stable_diffusion"),
        "vae": node("VAELoader", vae_name=VAE),
        "prompt": node("CLIPTextEncode", clip=["clip", 0], text=text),
        "empty": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
        "patched": patch,
        "sample": node(
            "KSampler",
            seed=seed,
            steps=steps,
            cfg=CFG,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["patched", 0],
            positive=["prompt", 0],
            negative=["empty", 0],
            latent_image=["latent", 0],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="soak"),
    }


def without_our_nodes(prompt):
    """The same prompt with the loaded model straight at the sampler."""
    left = {"model", "clip", "vae", "prompt", "empty", "latent", "sample", "decode", "save"}
    plain = {name: each for name, each in prompt.items() if name in left}
    sample = plain["sample"]
    # the number of a reference goes along, which its patch had
    number = {name: value for name, value in prompt["patched"]["inputs"].items() if name == "number"}
    return plain | {"sample": node(sample["class_type"], **sample["inputs"] | {"model": ["model", 0]} | number)}


def refused_by_the_host(plain):
    """A prompt without our nodes that a node of the host's refuses when it runs, and a pattern of that."""
    broken = node(
        "RegexReplace",
        string="two red circles",
        regex_pattern="(",
        replace="",
        case_insensitive=False,
        multiline=False,
        dotall=False,
        count=0,
    )
    return plain | {
        "broken": broken,
        "prompt": node("CLIPTextEncode", clip=["clip", 0], text=["broken", 0]),
    }, r"RegexReplace \(.*unterminated"


def guidance(class_type="ApplyModulationGuidance", **inputs):
    defaults = {"direction": ["direction", 0], "start_percent": 0.0, "end_percent": 1.0, "cfg_rows": "auto", "keep_norm": False}
    return node(class_type, model=["model", 0], **defaults | inputs)


def encoded(positive=WORDS[0], negative=WORDS[1]):
    return node("EncodeGuidanceDirection", clip=["clip", 0], positive=positive, negative=negative)


def reference_prompts(number):
    """By name, two prompts that stay the same; the number is an input that no node has, so that the host's cache does not know them."""
    projection = node("LoadPooledProjection", projection_name=PROJECTION)
    return {
        "FLUX": graph(guidance(w=4.0, number=number), seed=1) | {"direction": encoded()},
        "Wan": graph(guidance(w=4.0, number=number, projection=["projection", 0]), seed=1, text_blind=True)
        | {"direction": encoded(), "projection": projection},
    }


def a_prompt(draw, steps=STEPS):
    seed, text = draw.randrange(2**63), draw.choice(TEXTS)
    kind = draw.choice(["guided", "guided", "projected", "swept", "scaled"])
    if kind == "scaled":
        scale = node("ScaleTextVariance", model=["model", 0], scale=round(draw.uniform(0.5, 3), 2), start_percent=0.0, end_percent=1.0)
        if draw.random() < 0.5:
            scale["inputs"].update(clip=["clip", 0], prompt=text)
        return graph(scale, seed, text, steps)
    inputs = {
        "start_percent": draw.choice([0.0, 0.0, 0.3]),
        "end_percent": draw.choice([1.0, 1.0, 0.7]),
        "cfg_rows": draw.choice(["auto", "both", "cond", "opposed"]),
        "keep_norm": draw.random() < 0.3,
    }
    others = {"direction": encoded(draw.choice(WORDS[:4]), draw.choice(WORDS))}
    if draw.random() < 0.3:
        inputs["direction"] = ["combined", 0]
        others |= combined(f"{draw.uniform(-2, 2):.2f}, {draw.uniform(-2, 2):.2f}")
    if draw.random() < 0.7:
        inputs["schedule"], others["schedule"] = ["schedule", 0], a_schedule(draw)
    if kind == "projected":
        inputs["projection"] = ["projection", 0]
        others["projection"] = node("LoadPooledProjection", projection_name=PROJECTION)
    if kind == "swept":
        values = ", ".join(f"{draw.uniform(-6, 6):.2f}" for _ in range(2))
        patch = guidance("SweepModulationGuidance", w_values=values, start_layers=str(draw.randrange(4)), **inputs)
    else:
        patch = guidance(w=round(draw.uniform(-6, 6), 2), **inputs)
    return graph(patch, seed, text, steps, text_blind=kind == "projected") | others


def combined(weights):
    """Two directions, one of them from conditionings, as one."""
    links = {"directions.direction0": ["direction", 0], "directions.direction1": ["conditioned", 0]}
    return {
        "conditioned": node("GuidanceDirectionFromConditioning", positive=["prompt", 0], negative=["empty", 0]),
        "combined": node("CombineGuidanceDirections", weights=weights, **links),
    }


def a_schedule(draw):
    final_layer, start = draw.choice([0.0, 1.0]), draw.randrange(5)
    return draw.choice(
        [
            node(
                "GuidanceLayerSchedule",
                start_layer=start,
                end_layer=-1,
                taper_layers=draw.randrange(3),
                taper_scale=0.25,
                final_layer=final_layer,
            ),
            node("GuidanceLayerScheduleText", layers=f"{start}-6: {draw.uniform(-1, 1):.2f}", final_layer=final_layer),
            node(
                "GuidanceLayerScheduleCurve",
                curve={"points": [[0, draw.random()], [1, draw.random()]], "interpolation": "linear"},
                final_layer=final_layer,
            ),
        ]
    )


def a_long_prompt(draw):
    return a_prompt(draw, LONG)


def a_bad_prompt(draw):
    """A prompt that is refused, some when queued and some when its node runs; and a pattern of the node and its words."""
    seed, far = draw.randrange(2**63), draw.randrange(20, 90)
    apply, others = guidance(w=3.0), {"direction": encoded()}
    scheduled = guidance(w=3.0, schedule=["schedule", 0])
    swept = guidance("SweepModulationGuidance", w_values="0, x", start_layers="0")
    prompt, words = draw.choice(
        [
            (
                graph(scheduled, seed) | {"schedule": node("GuidanceLayerScheduleText", layers="0-4: 1, 5-x: 1", final_layer=0.0)},
                r"GuidanceLayerScheduleText \(.*5-x",
            ),
            (
                graph(scheduled, seed) | {"schedule": node("GuidanceLayerScheduleText", layers=f"0-{far}: 1", final_layer=0.0)},
                rf"(?s)ApplyModulationGuidance \(.*\b{far}\b",
            ),
            (graph(swept, seed), r"SweepModulationGuidance \(.*'x' in w_values"),
            (graph(apply, seed, text_blind=True), r"(?s)ApplyModulationGuidance \(.*projection"),
            (graph(guidance(w=3.0, start_percent=0.9, end_percent=0.1), seed), r"(?s)ApplyModulationGuidance \(.*past end_percent"),
            (graph(guidance(w=3.0, direction=["combined", 0]), seed) | combined("1, 2, 3"), r"CombineGuidanceDirections \(.*3 weights"),
        ]
    )
    return prompt | others, words
