"""Makes `docs/before_after.png`, the first picture of the README.

    python docs/before_after.py

Fine-tunes tiny on 64 ink drawings and asks it, before and after, for ink drawings of things that are not among them.
"""

import time
from pathlib import Path

import sdnb

STEPS = 400
RECIPE = sdnb.Recipe(learning_rate=2e-4)  # lesson 00's
SUBJECTS = ("a crab", "a bicycle", "a turtle", "a hedgehog", "a ghost", "a violin", "a zebra", "a cat")


def main() -> None:
    prompts = [f"{subject}, ink drawing" for subject in SUBJECTS]
    artist = {picture.caption: picture.open() for picture in sdnb.pictures("emoji-ink/held_out")}
    shown = sdnb.pictures("emoji-ink/train")
    assert set(prompts) <= set(artist) and not set(prompts) & set(shown.captions)

    sd = sdnb.load("tiny", device="cpu")
    rows = {"before": sd.draw(prompts, seed=1)}
    start = time.perf_counter()
    for _ in sdnb.train(sd, shown, RECIPE, steps=STEPS):
        pass
    print(f"{STEPS} steps in {time.perf_counter() - start:.0f} s")
    rows["after"] = sd.draw(prompts, seed=1)
    rows["by the artist,\nnever shown"] = [artist[prompt] for prompt in prompts]

    title = f"Asked for an ink drawing, before and after {STEPS} steps on ink drawings of other things"
    chart = sdnb.plots.grid(rows, titles=SUBJECTS, title=title)
    chart.figure.savefig(Path(__file__).with_suffix(".png"), dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
