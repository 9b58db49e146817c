"""Names of the classes of published detectors and segmentors, for files without names."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


COCO = _names(  # of COCO 2017, in the order of their numbers
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's numbers from 1 to 90
COCO_IDS = tuple(number for number in range(1, 91) if number not in _UNUSED)

ADE20K = _names(  # of SceneParsing, the first name that the data gives each
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)


def names_of(count: int, task: str) -> tuple[str, ...]:
    """Return names for `count` classes of a task: COCO's, ADE20K's, or numbers."""
    known = {"detection": COCO, "segmentation": ADE20K}.get(task, ())
    return known if len(known) == count else tuple(f"class {i}" for i in range(count))


def category_ids(classes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the number of each class in COCO's files: COCO's own for its classes, else from 1 on."""
    return COCO_IDS if classes == COCO else tuple(range(1, len(classes) + 1))
