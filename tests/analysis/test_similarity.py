"""CKA between groups of networks: products of unit vectors are the unbiased estimator, and which seeds are paired."""

import numpy as np
import pytest
import torch

from fourstage.analysis.cka import gram, linear_cka
from fourstage.analysis.similarity import similarity_of_trainings, unit_vectors


def features(seed: int, images: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1, (images, width))


def units(*features_NP: np.ndarray) -> np.ndarray:
    return unit_vectors(np.stack([gram(torch.from_numpy(one)).numpy() for one in features_NP]))


@pytest.mark.parametrize("images", [4, 5, 24])
def test_products_of_unit_vectors_are_the_unbiased_cka(images: int) -> None:
    shared = features(0, images)
    maps = [features(1, images, 7), shared, shared + 0.5 * features(2, images), features(3, images, 300)]
    found_TP = units(*maps).astype(float)
    expected = [[linear_cka(a, b) for b in maps] for a in maps]
    np.testing.assert_allclose(found_TP @ found_TP.T, expected, atol=1e-6)
    assert found_TP.shape == (4, images * (images - 1) // 2)


def test_maps_without_differences_have_no_direction() -> None:
    flat, own = np.ones((8, 5)), features(1, 8)
    assert np.isnan(units(flat)).all()
    assert np.isnan(similarity_of_trainings(units(flat)[None], units(own)[None])[0].mean)
    with pytest.raises(ValueError, match="CKA needs at least 4 images; got 3"):
        units(features(0, 3))


def test_seeds_of_a_pair_differ() -> None:
    base = features(9, 40)
    a = [base + 0.2 * features(seed, 40) for seed in range(3)]
    b = [own + 0.05 * features(20 + seed, 40) for seed, own in enumerate(a)]  # the same seeds are the most alike
    a_STP, b_STP = (np.stack([units(one) for one in arm]) for arm in (a, b))
    [between], [within] = similarity_of_trainings(a_STP, b_STP), similarity_of_trainings(a_STP)
    cross = [linear_cka(a[i], b[j]) for i in range(3) for j in range(3) if i != j]
    assert between.mean == pytest.approx(np.mean(cross), abs=1e-6)
    assert between.sd == pytest.approx(np.std(cross, ddof=1), abs=1e-6)
    assert (between.pairs, within.pairs) == (6, 3)
    assert within.mean == pytest.approx(
        np.mean([linear_cka(a[i], a[j]) for i, j in ((0, 1), (0, 2), (1, 2))]), abs=1e-6
    )
    assert between.mean < min(linear_cka(one, other) for one, other in zip(a, b, strict=True)) - 0.01


def test_one_seed_has_no_ceiling() -> None:
    a, b = features(1), features(2)
    [between], [within] = (
        similarity_of_trainings(units(a)[None], units(b)[None]),
        similarity_of_trainings(units(a)[None]),
    )
    assert between.mean == pytest.approx(linear_cka(a, b), abs=1e-6)
    assert np.isnan([between.sd, within.mean, within.sd]).all()
    assert (between.pairs, within.pairs) == (1, 0)
