"""The names the emoji world knows: a hundred or so, as many as two CPU cores can teach a model to draw."""

from __future__ import annotations

# our name -> emojibase label; one emoji per subject, chosen to differ in silhouette and colour
SUBJECTS: dict[str, str] = {
    # animals
    "monkey": "monkey face", "dog": "dog face", "fox": "fox", "cat": "cat face", "lion": "lion",
    "tiger": "tiger face", "unicorn": "unicorn", "zebra": "zebra", "cow": "cow face", "pig": "pig face",
    "rabbit": "rabbit face", "koala": "koala", "panda": "panda", "elephant": "elephant",
    "giraffe": "giraffe", "hedgehog": "hedgehog", "frog": "frog", "penguin": "penguin", "owl": "owl",
    "chick": "front-facing baby chick", "flamingo": "flamingo", "parrot": "parrot", "peacock": "peacock",
    "turtle": "turtle", "dragon": "dragon face", "whale": "spouting whale", "dolphin": "dolphin",
    "blowfish": "blowfish", "shark": "shark", "octopus": "octopus", "crab": "crab", "snail": "snail",
    "butterfly": "butterfly", "ladybug": "lady beetle", "bee": "honeybee",
    # plants
    "rose": "rose", "sunflower": "sunflower", "tulip": "tulip", "cactus": "cactus",
    "palm tree": "palm tree", "maple leaf": "maple leaf", "mushroom": "mushroom",
    "clover": "four leaf clover",
    # food
    "grapes": "grapes", "watermelon": "watermelon", "lemon": "lemon", "banana": "banana",
    "pineapple": "pineapple", "apple": "red apple", "cherries": "cherries", "strawberry": "strawberry",
    "kiwi": "kiwi fruit", "avocado": "avocado", "eggplant": "eggplant", "carrot": "carrot",
    "corn": "ear of corn", "broccoli": "broccoli", "pretzel": "pretzel", "cheese": "cheese wedge",
    "hamburger": "hamburger", "fries": "french fries", "pizza": "pizza", "hot dog": "hot dog",
    "popcorn": "popcorn", "sushi": "sushi", "ice cream": "soft ice cream", "doughnut": "doughnut",
    "cookie": "cookie", "cupcake": "cupcake", "lollipop": "lollipop", "wine": "wine glass",
    "beer": "beer mug",
    # vehicles and places
    "bus": "bus", "taxi": "taxi", "car": "automobile", "tractor": "tractor", "bicycle": "bicycle",
    "sailboat": "sailboat", "rocket": "rocket", "ufo": "flying saucer", "helicopter": "helicopter",
    "house": "house", "castle": "castle", "tent": "tent", "ferris wheel": "ferris wheel",
    # things
    "alarm clock": "alarm clock", "umbrella": "umbrella with rain drops", "moon": "crescent moon",
    "star": "star", "rainbow": "rainbow", "fire": "fire", "planet": "ringed planet",
    "pumpkin": "jack-o-lantern", "balloon": "balloon", "gift": "wrapped gift", "trophy": "trophy",
    "soccer ball": "soccer ball", "basketball": "basketball", "teddy bear": "teddy bear",
    "guitar": "guitar", "drum": "drum", "key": "key", "light bulb": "light bulb", "camera": "camera",
    "crown": "crown", "heart": "red heart", "robot": "robot", "ghost": "ghost", "alien": "alien",
    "skull": "skull",
}  # fmt: skip

PLURAL = frozenset({"grapes", "cherries", "fries"})

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
