"""Names that are cut for a figure stay different."""

from fourstage.report.markup import shortened


def test_names_are_cut_where_they_stay_different() -> None:
    assert shortened(["swin", "a" * 16], 16) == ["swin", "a" * 16]
    assert shortened(["abcdefgh_first_of_all", "hgfedcba"], 10) == ["abcdefgh_…", "hgfedcba"]
    recipes = [f"mask_rcnn_smt_small_coco_{length}" for length in ("1x", "3x")]
    assert shortened(recipes, 16) == ["mask_rcn…coco_1x", "mask_rcn…coco_3x"]
    keys = [
        "optimisation_of_lr=0.001, mixer=pvt, and_the_same_end",
        "optimisation_of_lr=0.002, mixer=pvt, and_the_same_end",
    ]
    assert shortened(keys, 16) == ["1: optimisation_", "2: optimisation_"]
    ends = [f"{'x' * 9}{middle}{'y' * 9}" for middle in ("1", "2")]
    for most in range(8, 24):
        short = shortened(ends, most)
        assert len(set(short)) == 2
        assert max(map(len, short)) <= most
