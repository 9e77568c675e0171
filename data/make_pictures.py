"""The bundled pictures: Fluent Emoji as 64x64 image-caption folders.

    python data/make_pictures.py

writes `data/emoji/` (every subject below, in colour) and `data/emoji-ink/{train,held_out}/` (some of the same subjects in the
high-contrast style, named in the caption) as image folders: PNG files and a `metadata.jsonl` with `file_name` and `text`.

Needs `npm`, which fetches two icon packages of pinned versions, and `pip install resvg-py pillow`, which draws them. The same
versions draw the same bytes. Origin and licence: `data/SOURCES.md`.
"""

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import resvg_py
from PIL import Image

HERE = Path(__file__).resolve().parent
FLAT = ("@iconify-json/fluent-emoji-flat", "1.2.6")
INK = ("@iconify-json/fluent-emoji-high-contrast", "1.2.6")
SIZE = 64  # pixels
STYLE = "ink drawing"  # how the captions of the second style name it
SPLIT_SEED = 7
HELD_OUT = 32
TRAIN = 64

# One icon a word. The caption is "a" or "an" and the icon's name, unless it is given behind "=".
SUBJECTS = """
    red-apple green-apple banana avocado bell-pepper=a_green_bell_pepper blueberries=blueberries broccoli=broccoli carrot
    cherries=two_cherries coconut cucumber ear-of-corn eggplant grapes=grapes hot-pepper=a_red_hot_pepper kiwi-fruit lemon
    lime mushroom onion peach pear pineapple potato strawberry tomato watermelon garlic=a_bulb_of_garlic chestnut bacon=bacon
    bread=a_loaf_of_bread butter=butter candy=a_wrapped_candy cheese-wedge=a_wedge_of_cheese chocolate-bar cookie croissant cupcake doughnut
    egg french-fries=french_fries hamburger hot-dog ice-cream=a_bowl_of_ice_cream lollipop pancakes=pancakes
    pie=a_slice_of_pie pizza=a_slice_of_pizza popcorn=popcorn pretzel soft-ice-cream=an_ice_cream_cone spaghetti=spaghetti
    sushi=sushi taco waffle birthday-cake poultry-leg=a_chicken_leg beer-mug=a_mug_of_beer bubble-tea=bubble_tea
    cocktail-glass wine-glass hot-beverage=a_cup_of_coffee teapot honey-pot ant bat bear beaver bird butterfly
    cat-face=a_cat chicken cow-face=a_cow crab crocodile dog-face=a_dog dolphin dragon-face=a_dragon duck eagle elephant
    fish flamingo fox frog giraffe hedgehog honeybee horse-face=a_horse jellyfish kangaroo koala lady-beetle=a_ladybird lion
    lobster monkey-face=a_monkey octopus owl panda parrot peacock penguin pig-face=a_pig rabbit-face=a_rabbit raccoon
    rooster sauropod scorpion shark snail snake spider squid swan t-rex tiger-face=a_tiger tropical-fish turtle unicorn=a_unicorn
    spouting-whale=a_whale wolf zebra baby-chick hatching-chick=a_hatching_chick cactus deciduous-tree=a_tree
    evergreen-tree=a_fir_tree palm-tree four-leaf-clover maple-leaf rose sunflower tulip
    cherry-blossom=a_pink_cherry_blossom potted-plant christmas-tree american-football artist-palette balloon=a_red_balloon
    basketball boxing-glove bullseye crystal-ball game-die=a_die ice-skate jack-o-lantern=a_pumpkin_lantern kite
    puzzle-piece soccer-ball teddy-bear trophy wrapped-gift=a_wrapped_gift video-game=a_game_controller accordion axe
    backpack banjo basket battery bed bell books=a_stack_of_books broom calendar camera candle chair coin
    couch-and-lamp=a_couch crown door dress drum envelope fire-extinguisher flashlight gear gem-stone=a_blue_gem guitar
    hammer handbag high-heeled-shoe hiking-boot jeans=jeans key=a_golden_key ladder laptop light-bulb locked=a_padlock
    magnet magnifying-glass-tilted-left=a_magnifying_glass megaphone microscope money-bag=a_bag_of_money musical-note
    open-book paperclip pencil pushpin radio red-paper-lantern ring=a_diamond_ring scissors=scissors screwdriver shield
    shopping-cart socks=socks sunglasses=sunglasses t-shirt telephone television top-hat trumpet umbrella=a_purple_umbrella
    violin wrench airplane=an_airplane alarm-clock anchor automobile=a_red_car bicycle bus=a_bus castle compass fire=a_fire
    fire-engine helicopter hourglass-done=an_hourglass house locomotive rocket sailboat snowflake snowman star=a_yellow_star
    sun=the_sun tent tractor volcano rainbow taxi crescent-moon ghost alien robot skull red-heart blue-heart pile-of-poo
    clown-face=a_clown grinning-face=a_smiling_face crying-face=a_crying_face pouting-face=an_angry_red_face
    smiling-face-with-sunglasses=a_face_with_sunglasses sleeping-face=a_sleeping_face ringed-planet=a_planet_with_a_ring
"""


def subjects() -> dict[str, str]:
    """Icon name -> caption."""
    captions = {}
    for word in SUBJECTS.split():
        icon, _, caption = word.partition("=")
        name = icon.replace("-", " ")
        captions[icon] = caption.replace("_", " ") or f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return captions


def icons(package: str, version: str, folder: Path) -> tuple[dict, str]:
    """The icons of one npm package by name, and the SHA-256 of its archive."""
    subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = folder / f"{package.strip('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))["icons"]
    return icons, hashlib.sha256(archive.read_bytes()).hexdigest()


def draw(body: str) -> Image.Image:
    """One icon (a 32x32 view box) on white, drawn four times too large and averaged down."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" color="black">{body}</svg>'
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIZE, height=4 * SIZE))))
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture.convert("RGBA"))
    return page.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def write(folder: Path, bodies: dict, captions: dict[str, str]) -> None:
    """An image folder, complete or not there at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with open(partial / "metadata.jsonl", "w", encoding="utf-8") as metadata:
        for icon, caption in captions.items():
            draw(bodies[icon]["body"]).save(partial / f"{icon}.png", optimize=True)
            metadata.write(json.dumps({"file_name": f"{icon}.png", "text": caption}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    captions = subjects()
    if len(set(captions.values())) != len(captions):
        raise ValueError("two subjects share a caption")
    with tempfile.TemporaryDirectory() as folder:
        flat, flat_hash = icons(*FLAT, Path(folder))
        ink, ink_hash = icons(*INK, Path(folder))
    missing = [icon for icon in captions if icon not in flat]
    if missing:
        raise ValueError(f"not in {FLAT[0]}: {', '.join(missing)}")

    write(HERE / "emoji", flat, captions)
    both = sorted(icon for icon in captions if icon in ink)
    random.Random(SPLIT_SEED).shuffle(both)
    styled = {icon: f"{captions[icon]}, {STYLE}" for icon in both}
    write(HERE / "emoji-ink" / "held_out", ink, {icon: styled[icon] for icon in sorted(both[:HELD_OUT])})
    write(HERE / "emoji-ink" / "train", ink, {icon: styled[icon] for icon in sorted(both[HELD_OUT : HELD_OUT + TRAIN])})
    print(f"{len(captions)} subjects in emoji/, {HELD_OUT} + {TRAIN} in emoji-ink/")
    print(f"{FLAT[0]} {FLAT[1]}  sha256 {flat_hash}\n{INK[0]} {INK[1]}  sha256 {ink_hash}")


if __name__ == "__main__":
    main()
