"""Texts that models calibrate themselves on: pictures people ask for, and plain sentences."""

from __future__ import annotations

from collections.abc import Iterator

PROMPTS = (
    "a photograph of an old fisherman mending a net on a pier, overcast light, 50 mm",
    "",
    "watercolour of a hillside village in spring, loose brushwork, white paper showing through",
    "a red bicycle leaning against a yellow wall",
    "studio portrait of a young woman in a green wool coat, softbox lighting, grey backdrop",
    "blurry, low quality, watermark, text, deformed hands, cropped",
    "an isometric drawing of a tiny bakery with an open roof, pastel colours",
    "a snow leopard crossing a rocky ridge at dawn, telephoto, shallow depth of field",
    "a bowl of ramen with a soft egg and spring onions, steam rising, seen from above",
    'a shop sign that reads "OPEN LATE" in blue neon, wet street, night',
    "an astronaut reading a newspaper in a laundromat, film grain",
    "ink sketch of two cranes among reeds, a few strokes, large empty space",
    "a glass greenhouse in a storm, lightning behind it, dramatic clouds, matte painting",
    "macro shot of a beetle with an iridescent shell on a wet leaf",
    "children flying kites on a wide beach, seen from far away, late afternoon",
    "a low-poly fox on a plain background",
    "the camera moves slowly along a river through a forest, mist drifting over the water",
    "a marble statue of a dancer in an empty museum hall, strong side light",
    "anime style, a boy and his robot waiting at a rural railway station, summer",
    "floor plan of a small house, black lines on white",
    "a crowded night market, lanterns, smoke from grills, motion blur",
    "cutaway diagram of a volcano with labelled layers",
    "a plate of blue cheese, figs and walnuts on a dark wooden table, oil painting",
    "an orange cat asleep on a stack of books beside a window with rain",
)
"""What a diffusion model is told: long and short, several media, an empty and a negative one."""

_SUBJECTS = (
    "an elderly clockmaker",
    "two sisters in yellow raincoats",
    "a herd of wild horses",
    "the last tram of the evening",
    "a violinist with a bandaged hand",
    "a robot gardener",
    "a family of otters",
    "the lighthouse keeper's dog",
    "an abandoned fairground",
    "a knight in dented armour",
    "a street vendor selling roasted chestnuts",
    "an enormous library",
    "a girl with freckles and a telescope",
    "three paper boats",
    "a brass diving helmet",
    "the mayor of a very small town",
    "a hummingbird",
    "a wooden bridge covered in moss",
    "an exhausted marathon runner",
    "a chandelier made of bottles",
    "a team of archaeologists",
    "the ghost of a ship's cook",
    "a greenhouse full of cacti",
)
_DOINGS = (
    "waits patiently for something that will not come",
    "is reflected in a puddle of rainwater",
    "disappears slowly into the morning fog",
    "stands under a single flickering lamp",
    "has been painted in thick, careful layers",
    "turns towards the viewer with a half-hidden smile",
    "glows faintly, as if lit from inside",
    "rests between two long journeys",
    "is surrounded by falling leaves and loose pages",
    "looks smaller than anyone remembers",
    "casts a long blue shadow over the snow",
    "belongs to a story nobody has finished",
    "moves quickly, leaving a trail of dust",
    "seems to float a few centimetres above the ground",
    "shares a table with complete strangers",
    "is being repaired by candlelight",
    "fills the whole frame from edge to edge",
    "is seen through a rain-streaked window",
    "listens to a radio that plays only static",
)
_PLACES = (
    "on the roof of a department store",
    "in a harbour crowded with small boats",
    "at the edge of a salt desert",
    "behind the stage of a provincial theatre",
    "in a kitchen with copper pans on the wall",
    "under the arches of a stone aqueduct",
    "near a frozen waterfall",
    "inside a spaceship that has seen better days",
    "in a meadow full of poppies",
    "on platform nine of a railway station",
    "beside an empty swimming pool",
    "in the shade of an olive tree",
    "between tall shelves of glass jars",
    "on a terrace high above the city",
    "in a narrow alley hung with washing",
    "at the bottom of a shallow sea",
    "in a classroom after everyone has left",
)
_MANNERS = (
    "Oil on canvas, heavy impasto, warm browns and one cold green.",
    "Shot on expired film with a cheap plastic lens.",
    "Flat vector illustration, four colours, thick outlines.",
    "Rendered in three dimensions with global illumination, 8k, highly detailed.",
    "A woodcut, slightly misprinted, on rough paper.",
    "Golden hour, long lens, the background dissolving into circles of light.",
    "Pencil and coloured chalk on grey cardboard.",
    "In the manner of a travel poster from the nineteen-thirties.",
    "Grainy black and white, flash from the left, wide angle.",
    "Cinematic lighting, anamorphic lens, teal and orange.",
    "A page from a comic book, with an empty speech balloon.",
    "Stop motion, clay, visible fingerprints.",
    "Minimalist, mostly white, one accent of red.",
)
_SENTENCES = (
    "The recipe asks for 250 g of flour, two eggs and a pinch of salt; everything else is taste.",
    "Nobody had told the committee that the bridge would be closed until the fourteenth of March.",
    "If x is larger than zero, the function grows without bound; otherwise it tends to one.",
    "Please answer briefly: which of the three objects is nearest to the left edge of the picture?",
    "Her grandmother kept buttons, keys and foreign coins in a tin that had once held biscuits.",
    "Version 2.1 fixes a crash on start-up and adds a setting for the size of the icons.",
    "What a strange morning: the trains were early, the coffee was strong, and it rained upwards.",
    "The experiment was repeated six times, always with a fresh sample and another observer.",
    "Turn left after the post office, cross the square, and ask for Mr Okafor at the blue door.",
    "Prices rose by 3.7 percent in the second quarter, less than most analysts had expected.",
    "He said he'd never seen the sea, and then he described it better than any sailor could.",
    "Warning: do not open the lid while the drum is turning, and keep children away from it.",
    "def area(width, height): return width * height  # both in metres",
    "The museum's oldest object is a comb of bone, found beside the river and dated to 4200 BC.",
    "We apologise for the delay and will refund the full amount within ten working days.",
    "A haiku has three lines; this sentence, like most sentences, has only one.",
    "Once the glue has dried, sand the joint lightly and wipe away the dust with a damp cloth.",
    "The orchestra tuned, the lights went down, and somebody in the third row began to cough.",
    "Translate the following sentence into French: the cat sleeps where the sun falls.",
    "Bacteria were first seen in 1676 by a draper who ground his own lenses.",
    "Is it true that owls cannot move their eyes, or did you make that up as well?",
    "The defendant, a carpenter from Lyon, denied every charge except the one about the goat.",
    "Between the two villages lies a moor of about forty square kilometres, mostly under water.",
)
_AT_ONCE = 20
"""Sentences in a text: about as many tokens as the largest encoders read at a time."""
_MOST = 2000


def texts() -> Iterator[str]:
    """Texts of some three hundred tokens, each different; always the same ones."""
    sentences: list[str] = []
    for index in range(_MOST):
        subject = _SUBJECTS[index % len(_SUBJECTS)]
        doing = _DOINGS[(index * 7 + index // len(_SUBJECTS)) % len(_DOINGS)]
        place = _PLACES[(index * 5 + index // len(_DOINGS)) % len(_PLACES)]
        sentences.append(f"{subject[0].upper()}{subject[1:]} {doing} {place}.")
        if index % 2:
            sentences.append(_MANNERS[index // 2 % len(_MANNERS)])
        if index % 3 == 0:
            sentences.append(_SENTENCES[index // 3 % len(_SENTENCES)])
        if len(sentences) >= _AT_ONCE:
            yield " ".join(sentences)
            sentences = []
