"""The names the emoji world knows: 64, as many as two CPU cores can teach a model to draw well."""

from __future__ import annotations

# our name -> emojibase label; one emoji per subject, chosen to differ in silhouette and colour
SUBJECTS: dict[str, str] = {
    # animals
    "monkey": "monkey face", "dog": "dog face", "fox": "fox", "cat": "cat face", "lion": "lion",
    "unicorn": "unicorn", "cow": "cow face", "pig": "pig face", "rabbit": "rabbit face", "koala": "koala",
    "panda": "panda", "frog": "frog", "penguin": "penguin", "owl": "owl",
    "chick": "front-facing baby chick", "turtle": "turtle", "whale": "spouting whale",
    "octopus": "octopus", "crab": "crab", "ladybug": "lady beetle", "bee": "honeybee",
    # plants
    "rose": "rose", "sunflower": "sunflower", "cactus": "cactus", "palm tree": "palm tree",
    "mushroom": "mushroom",
    # food
    "watermelon": "watermelon", "lemon": "lemon", "banana": "banana", "pineapple": "pineapple",
    "apple": "red apple", "cherries": "cherries", "strawberry": "strawberry", "avocado": "avocado",
    "carrot": "carrot", "hamburger": "hamburger", "fries": "french fries", "pizza": "pizza",
    "ice cream": "soft ice cream", "doughnut": "doughnut", "cupcake": "cupcake",
    # vehicles and places
    "bus": "bus", "taxi": "taxi", "car": "automobile", "tractor": "tractor", "sailboat": "sailboat",
    "rocket": "rocket", "ufo": "flying saucer", "helicopter": "helicopter", "house": "house",
    "castle": "castle", "tent": "tent",
    # things
    "star": "star", "rainbow": "rainbow", "pumpkin": "jack-o-lantern", "balloon": "balloon",
    "gift": "wrapped gift", "trophy": "trophy", "soccer ball": "soccer ball", "guitar": "guitar",
    "heart": "red heart", "robot": "robot", "ghost": "ghost", "alien": "alien",
}  # fmt: skip

PLURAL = frozenset({"cherries", "fries"})

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49), "orange": (245, 145, 45), "yellow": (250, 216, 72), "green": (70, 170, 88),
    "blue": (62, 120, 220), "purple": (138, 84, 200), "pink": (248, 150, 190), "white": (246, 246, 246),
    "black": (24, 24, 28), "gray": (140, 142, 148),
}  # fmt: skip

# simple places: the phrase after the subject
SCENES: dict[str, str] = {
    "sky": "in the sky", "grass": "on grass", "night": "at night", "sunset": "at sunset",
    "beach": "on a beach", "snow": "in the snow",
}  # fmt: skip

SPECIFIC_WORDS = (
    "blurry", "noisy", "jpeg artifacts", "pixelated", "distorted", "washed out", "cropped",
    "duplicate", "dark", "overexposed",
)  # fmt: skip
GENERIC_WORDS = ("low quality", "ugly", "messy")
BAD_WORDS = SPECIFIC_WORDS + GENERIC_WORDS  # thirteen, and never the word that adapters are trained on
FORBIDDEN = "wrong"

assert all(FORBIDDEN not in word for word in (*SUBJECTS, *COLOURS, *SCENES, *BAD_WORDS))
