"""How good settings are that choose themselves, on the small world, with its checkers as scorers.

    python benchmarks/choice.py            text guidance, 32 prompts, 4 seeds, 14 settings: 1,792 pictures, and choice.md
    python benchmarks/choice.py --learned  the direction learned for detail, 13 settings, on prompts that it was not learned on
    python benchmarks/choice.py --prompts 2 --steps 2    do all settings run?

For each prompt a setting is chosen from the pictures of one half of the seeds, and judged on those of the other half, both ways round.
Wanted is the detail that the checkers measure, kept the share of what the prompt asks for that they find. Cut at any time, it goes on
where it was.
"""

import argparse
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACK))

from benchmarks.in_process import load_host, of_pack
from tools.files import write_whole
from tools.host import ensure_host, run_under

PLAIN = (0.0, 0)


@dataclass(frozen=True)
class Sweep:
    """What is tried. fixed: (w, start layer) that is taken without trying. coarse: the w that is tried first, with each start layer; then
    the others with the best of these."""

    w_values: tuple[float, ...]
    start_layers: tuple[int, ...]
    fixed: tuple[float, int]
    coarse: float
    learned: bool = False

    @property
    def grid(self) -> list[tuple[float, int]]:
        return [(w, start) for start in self.start_layers for w in self.w_values]

    @property
    def settings(self) -> list[tuple[float, int]]:
        """All that is drawn, the plain one first, then the fixed one."""
        return list(dict.fromkeys((PLAIN, self.fixed, *self.grid)))

    def rows(self, settings) -> list[int]:
        """Where they are among `settings`."""
        every = self.settings
        return [every.index(each) for each in settings]

    def condition(self, w: float, start: int):
        from benchmarks.effect.conditions import complexity
        from benchmarks.effect.learned import learned

        if not w:
            return complexity(0.0)
        return learned("detail", w, start) if self.learned else complexity(w, start)

    def prompts(self, count: int) -> list:
        from benchmarks.effect.learned import held_out
        from benchmarks.effect.prompts import prompt_set

        return held_out(count) if self.learned else prompt_set("general", count)


# Fixed: the nodes' own w and the reference's start layer at this depth; w 1 of a learned direction is as strong as its words.
BY_TEXT = Sweep((2.0, 4.0, 6.0, 8.0), (0, 2, 4), fixed=(3.0, 1), coarse=4.0)
LEARNED = Sweep((0.5, 1.0, 1.5, 2.0), (0, 2, 4), fixed=(1.0, 0), coarse=1.0, learned=True)
DRAWS = 200  # of the settings that are tried, for each number of them


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learned", action="store_true", help="the direction learned for detail, in place of text guidance")
    parser.add_argument("--out", type=Path, help="folder for scores and choice.md (default out/choice, learned: out/choice_learned)")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=4, help="an even number: half to choose by, half to judge by")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--report", action="store_true", help="write choice.md from the prompts that are done, and draw nothing")
    parser.add_argument("--under-host", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seeds < 2 or options.seeds % 2:
        parser.error("--seeds must be an even number")
    options.out = options.out or PACK / "out" / ("choice_learned" if options.learned else "choice")
    return options


def main():
    options = arguments()
    if not options.under_host:
        run_under(ensure_host(), [__file__, "--under-host", *sys.argv[1:]])
    load_host()
    import torch

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    sweep = LEARNED if options.learned else BY_TEXT
    with torch.inference_mode():
        done = measured(sweep, options)
    if not done:
        sys.exit(f"error: no prompt is done yet in {options.out}. Run it without --report.")
    write_whole(options.out / "choice.md", report(sweep, done, options))
    print((options.out / "choice.md").read_text(encoding="utf-8"))


def measured(sweep: Sweep, options) -> list[dict]:
    """[{score: (settings, seeds) lists}] of each prompt, from the file of those that are done and from new pictures."""
    path = options.out / f"scores_{options.steps}_{options.seeds}.jsonl"
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        record = json.loads(line)
        done[record["prompt"]] = record["scores"]
    prompts = sweep.prompts(options.prompts)
    missing = [] if options.report else [prompt for prompt in prompts if prompt.text not in done]
    if missing:
        draw = painter(sweep, options)
        for number, prompt in enumerate(missing, 1):
            done[prompt.text] = draw(prompt)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"prompt": prompt.text, "scores": done[prompt.text]}) + "\n")
            print(f"{number} of {len(missing)}: {prompt.text}", flush=True)
    return [done[prompt.text] for prompt in prompts if prompt.text in done]


def painter(sweep: Sweep, options):
    """Draws a prompt in every setting and gives its scores."""
    from benchmarks.effect.settings import Files, Settings
    from benchmarks.effect.studio import Studio
    from tools.small_models import CFG, DIFFUSION_MODEL, SIZE, TEXT_ENCODER, VAE, WEIGHTS
    from tools.small_world.attributes import file_name
    from tools.small_world.checkers import read_picture, score
    from tools.small_world.text_encoder import write_clip_l

    encoder = PACK / "out" / "small_world" / TEXT_ENCODER
    if not encoder.is_file():
        encoder.parent.mkdir(parents=True, exist_ok=True)
        write_clip_l(encoder)
    files = Files(
        diffusion_model=WEIGHTS / DIFFUSION_MODEL,
        text_encoders=(encoder,),
        clip_type="stable_diffusion",
        vae=WEIGHTS / VAE,
        directions={"detail": WEIGHTS / file_name("flux", "detail")},
    )
    studio = Studio(files, Settings(size=SIZE, steps=options.steps, cfg=float(CFG)))

    def draw(prompt) -> dict:
        scores = {"detail": [], "kept": [], "exact": []}
        for w, start in sweep.settings:
            found = [
                score(read_picture(picture), prompt.wanted)
                for picture in studio.pictures(prompt.text, sweep.condition(w, start), prompt.seed, options.seeds)
            ]
            scores["detail"].append([100 * each["detail"] for each in found])
            scores["kept"].append([share(each) for each in found])
            scores["exact"].append([100.0 * each["exact"] for each in found])
        return scores

    return draw


def share(found: dict) -> float:
    """Of what the prompt asks for, in percent."""
    asked = [found[name] for name in ("count", "color", "shape", "exact", "position") if found[name] is not None]
    return 100 * sum(asked) / len(asked)


def chosen(sweep: Sweep, scores: dict, seeds: list[int], tried: list[int]) -> int:
    """The setting that Choose Guidance takes of those `tried`, by the pictures of these seeds."""
    choice = of_pack("scoring.choice")
    settings = {i: choice.Setting(str(i), *sweep.settings[i], plain=i == 0) for i in (0, *tried)}
    rows = [(settings[i], scores["detail"][i][seed], scores["kept"][i][seed]) for i in settings for seed in seeds]
    return int(choice.choose(*zip(*rows, strict=True), choice.TOLERANCE).chosen.setting.label)


def coarse_then_fine(sweep: Sweep, scores: dict, seeds: list[int]) -> int:
    """As many settings as start layers and w values together, less one."""
    first = sweep.rows((sweep.coarse, start) for start in sweep.start_layers)
    best = chosen(sweep, scores, seeds, first)
    start = sweep.settings[best][1]
    return chosen(sweep, scores, seeds, list(dict.fromkeys([*first, *sweep.rows((w, start) for w in sweep.w_values)])))


def judged(done: list[dict], choose):
    """{score: (prompts, seeds)} of what `choose(scores, seeds)` takes, each half of the seeds judged by the choice of the other."""
    import numpy as np

    seeds = len(done[0]["detail"][0])
    halves = [list(range(seeds // 2)), list(range(seeds // 2, seeds))]
    made = {name: np.zeros((len(done), seeds)) for name in done[0]}
    for row, scores in enumerate(done):
        for ours, others in (halves, halves[::-1]):
            taken = choose(scores, ours)
            for name, values in made.items():
                values[row, others] = [scores[name][taken][seed] for seed in others]
    return made


def report(sweep: Sweep, done: list[dict], options) -> str:
    import numpy as np

    every = sweep.rows(sweep.grid)
    few = len(sweep.start_layers) + len(sweep.w_values) - 1
    plain, fixed = (judged(done, lambda scores, seeds, row=row: row) for row in (0, 1))
    full = judged(done, lambda scores, seeds: chosen(sweep, scores, seeds, every))
    rounds = judged(done, lambda scores, seeds: coarse_then_fine(sweep, scores, seeds))
    ways = {
        "plain": plain,
        f"fixed: {_named(sweep, 1)}": fixed,
        f"chosen of {len(every)}": full,
        f"chosen, coarse then fine ({few} of {len(every)})": rounds,
    }
    best = max(every, key=lambda i: np.mean([scores["detail"][i] for scores in done]))
    ways[f"the most detail on average: {_named(sweep, best)} (not chosen: known afterwards)"] = judged(done, lambda scores, seeds: best)

    def compared(first, second) -> str:
        detail, kept, exact = (changed(first[score], second[score]).replace(", ", " (") + ")" for score in ("detail", "kept", "exact"))
        return f"detail by {detail}; what is asked for by {kept} points; exactly as asked by {exact} points"

    lines = [
        f"# Settings that choose themselves: {'a direction learned for detail' if sweep.learned else 'text guidance towards complexity'}",
        "",
        f"By `python3 benchmarks/choice.py{' --learned' * sweep.learned}`: {len(done)} prompts of the small world, {options.seeds} seeds, {options.steps} steps, its "
        "FLUX.1-shaped model. Wanted is the detail that the checkers measure, kept the share of what the prompt asks for that they find. Chosen by the "
        "pictures of one half of the seeds, judged on the other half. In brackets the change from the fixed setting, paired, with 95 % "
        "intervals over prompts.",
        "",
        "| setting | detail | what is asked for, % | exactly as asked, % |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {' | '.join(f'{made[score].mean():.1f} ({changed(made[score], fixed[score])})' for score in fixed)} |"
            for name, made in ways.items()
        ),
        "",
        f"The choice of {len(every)} changes, against the plain picture, {compared(full, plain)}.",
        f"Coarse then fine changes, against the choice of {len(every)}, {compared(rounds, full)}.",
        "",
        *by_seeds(sweep, done, every),
        "",
        *by_number(sweep, done, every),
    ]
    return "\n".join(lines) + "\n"


def changed(values, others) -> str:
    from benchmarks.effect.statistics import difference

    estimate = difference(values, others)
    return f"{estimate.mean:+.1f}, {estimate.low:+.1f} to {estimate.high:+.1f}"


def by_seeds(sweep: Sweep, done: list[dict], every: list[int]) -> list[str]:
    """What the choice is worth on other seeds by the number of those it was made by, in lines of markdown."""
    import numpy as np

    lines = [
        "## How many seeds to choose by",
        "",
        f"The choice of {len(every)} by every so many of the seeds, judged on the others; 95 % intervals over prompts.",
        "",
        "| seeds | detail, from fixed | what is asked for, from plain, points |",
        "| --- | --- | --- |",
    ]
    seeds = set(range(len(done[0]["detail"][0])))
    for count in range(1, len(seeds)):
        detail, kept = (np.zeros((len(done), 1)) for _ in range(2))
        parts = list(itertools.combinations(sorted(seeds), count))
        for row, scores in enumerate(done):
            for ours in parts:
                taken, others = chosen(sweep, scores, list(ours), every), sorted(seeds - set(ours))
                for made, name, base in ((detail, "detail", 1), (kept, "kept", 0)):
                    of_setting = np.array(scores[name])
                    made[row] += (of_setting[taken, others] - of_setting[base, others]).mean() / len(parts)
        lines.append(f"| {count} | {changed(detail, 0 * detail)} | {changed(kept, 0 * kept)} |")
    return lines


def by_number(sweep: Sweep, done: list[dict], every: list[int]) -> list[str]:
    """How good the choice is by the number of settings tried, in lines of markdown."""
    import numpy as np

    lines = [
        "## How many settings to try",
        "",
        f"The same choice among some of the {len(every)} settings, drawn {DRAWS} times.",
        "",
        "| tried | detail | what is asked for, % |",
        "| --- | --- | --- |",
    ]
    draw = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 6, 8, len(every)):
        made = [
            judged(done, lambda scores, seeds, tried=draw.choice(every, count, replace=False).tolist(): chosen(sweep, scores, seeds, tried))
            for _ in range(DRAWS if count < len(every) else 1)
        ]
        detail, kept = (np.mean([each[score].mean() for each in made]) for score in ("detail", "kept"))
        lines.append(f"| {count} | {detail:.1f} | {kept:.1f} |")
    return lines


def _named(sweep: Sweep, row: int) -> str:
    w, start = sweep.settings[row]
    return f"w {w:g}, start {start}"


if __name__ == "__main__":
    main()
