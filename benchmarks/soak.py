"""Many prompts to one real server: whether its memory, open files and threads stay, and whether a picture stays the same to the bit.

    python benchmarks/soak.py [--prompts 1000] [--seed 1] [--plain] [--comfyui-version ...]

Prompts are drawn from the seed, on the small world's models (see soak_prompts.py): none is answered from the host's cache. Every
7th is interrupted at a random moment, every 5th is one that our nodes must refuse, and every 10th time two reference pictures are
drawn again. Exits with 1 where one of these changed, the server died, or a prompt ended otherwise than it should.

--plain sends the same prompts without our nodes, to tell the host's growth from ours; a node of the host's then refuses.
"""

import argparse
import io
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.host import DEFAULT_VERSION, ensure_host, run_under
from tools.packages import SetupError
from tools.pinned import cache_folder
from tools.server import Client, PromptError, PromptInterrupted, ServerError, running_server

MEASURES = 50  # in a run; the first fifth of them is its settling start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="the same prompts without our nodes")
    parser.add_argument("--comfyui-version", default=DEFAULT_VERSION, help="the ComfyUI to set up")
    options = parser.parse_args()
    try:
        host = ensure_host(options.comfyui_version)
        if "COMFYUI_PYTHON" not in os.environ:
            run_under(host, [__file__, *sys.argv[1:]])
        from tools.small_models import write_small_models

        os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models lose much to threads where cores are shared
        models = cache_folder() / "small-world"
        write_small_models(models)
        print(f"ComfyUI {host.version}, seed {options.seed}{', without our nodes' if options.plain else ''}", flush=True)
        # the host's other caches keep what all prompts made, until memory runs short
        with running_server(host, [models], ["--cache-classic"]) as url:
            problems = soak(Client(url), options.prompts, options.seed, options.plain)
    except (SetupError, ServerError, ConnectionError) as error:
        sys.exit(f"error: {error}")
    sys.exit(1 if problems else 0)


def soak(client, prompts, seed, plain=False):
    """Sends the prompts and prints what was seen; returns what went wrong, a sentence each."""
    draw, process, every = random.Random(seed), server_process(client), max(1, prompts // MEASURES)
    first, ended, measured, problems = {}, Counter(), [], []
    started = time.monotonic()
    for number in range(1, prompts + 1):
        for how, problem in send(client, number, draw, first, plain):
            ended[how] += 1
            if problem:
                problems.append(f"prompt {number}: {problem}")
                print(problems[-1], flush=True)
        if number % every == 0:
            client.post("/history", {"clear": True})  # it keeps 10,000 prompts
            measured.append((number, measure(process)))
            if number % 100 == 0:
                print(f"{number} prompts, {time.monotonic() - started:.0f} s: {told(measured[-1][1])}", flush=True)
    print(", ".join(f"{count} {how}" for how, count in sorted(ended.items())) + f"; {len(problems)} not as it should be")
    settled = measured[len(measured) // 5 :]
    print(f"after {settled[0][0]} prompts: {told(settled[0][1])}\nafter {settled[-1][0]} prompts: {told(settled[-1][1])}")
    if len(settled) > 1:
        growth = statistics.linear_regression(*zip(*((number, memory) for number, (memory, _, _) in settled))).slope * 100
        print(f"growth of memory from then on: {growth:+.2f} MiB per 100 prompts")
    return problems


def send(client, number, draw, first, plain=False):
    """Sends the prompt of that number; yields how each that ran was meant to end, and what was wrong with its end, if anything.

    first: the reference pictures' pixels by name, filled at the first time.
    """
    from benchmarks import soak_prompts as prompts  # which need the host's Python

    sent = prompts.without_our_nodes if plain else lambda prompt: prompt
    if number % 10 == 1:
        for name, prompt in prompts.reference_prompts(number).items():
            yield "references", again(client, name, sent(prompt), first)
    if number % 7 == 0:
        yield "interrupted", interrupted(client, sent(prompts.a_long_prompt(draw)), draw)
    elif number % 5 == 0:
        prompt, words = prompts.a_bad_prompt(draw)
        yield "refused", refused(client, *(prompts.refused_by_the_host(sent(prompt)) if plain else (prompt, words)))
    else:
        yield "drawn", drawn(client, sent(prompts.a_prompt(draw)))


def drawn(client, prompt):
    sampled = set()
    try:
        images = client.run(prompt, lambda progress: sampled.add(progress.node))
    except (PromptError, PromptInterrupted) as error:
        return f"{error}; it was {prompt}"
    if "sample" not in sampled or not images.get("save"):
        return f"nothing was drawn anew; it was {prompt}"
    return None


def refused(client, prompt, words):
    """words: a pattern that the error must hold, with the node that is to blame."""
    try:
        client.run(prompt)
    except PromptError as error:
        return None if re.search(words, str(error)) else f"refused with other words than {words}: {error}"
    return f"not refused with {words}; it was {prompt}"


def interrupted(client, prompt, draw):
    left, delay = draw.randrange(60), draw.random() / 20

    def interrupt(progress):
        nonlocal left
        left -= 1
        if left == -1:
            time.sleep(delay)
            client.interrupt()

    try:
        client.run(prompt, interrupt)
    except PromptInterrupted:
        return None
    except PromptError as error:
        return f"not interrupted, but: {error}"
    return "not interrupted"


def again(client, name, prompt, first):
    from PIL import Image

    sampled = set()
    try:
        images = client.run(prompt, lambda progress: sampled.add(progress.node))
    except (PromptError, PromptInterrupted) as error:
        return f"the reference {name}: {error}"
    pixels = Image.open(io.BytesIO(images["save"][0])).convert("RGB").tobytes()  # the file also holds the prompt
    if "sample" not in sampled:
        return f"the reference {name} came from the cache"
    return None if first.setdefault(name, pixels) == pixels else f"the reference {name} changed"


def server_process(client):
    """The process below this one that listens where the client sends."""
    import psutil

    port = urlsplit(client.url).port
    return next(
        process
        for process in psutil.Process().children(recursive=True)
        if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections("inet"))
    )


def measure(process):
    """(MiB of resident memory, open files, threads)"""
    files = process.num_handles() if os.name == "nt" else process.num_fds()
    return process.memory_info().rss / 2**20, files, process.num_threads()


def told(measured):
    return "memory {:.1f} MiB, {} open files, {} threads".format(*measured)


if __name__ == "__main__":
    main()
