"""CKA: the golden numbers, closed forms, invariances, and intervals that cover."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from golden_networks import GOLDEN, filled_backbone, manifest
from torch import Tensor, nn

from fourstage.analysis.cka import Sums, compare, gram, hsic_biased, hsic_unbiased, linear_cka

STAGES = ("stage1", "stage2", "stage3", "stage4")


def blocks() -> Tensor:
    """Return the (32, 3, 64, 64) images of the golden numbers."""
    z = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    return torch.from_numpy(z.repeat(8, axis=2).repeat(8, axis=3))


def in_batches(images: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(chunk, chunk) for chunk in images.split(size)]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {name: filled_backbone(name) for name in ("convnext_atto", "resnet18")}


@pytest.mark.parametrize("key", sorted(manifest("cka")["tables"]))
def test_tables_of_networks_are_the_golden_ones(key: str, networks: dict[str, nn.Module]) -> None:
    a, b, pooling, estimator = key.split("__")
    kind, _, batch = estimator.partition("_")
    size = int(batch.removeprefix("full").removeprefix("minibatch"))
    found = compare(
        networks[a],
        networks[b],
        in_batches(blocks(), size),
        STAGES,
        STAGES,
        estimator=kind,  # pyright: ignore[reportArgumentType]
        pooling=pooling,  # pyright: ignore[reportArgumentType]
    )
    np.testing.assert_allclose(found.value_AB, np.load(GOLDEN / "cka.npz")[key], atol=1e-5)
    if a == b:
        np.testing.assert_allclose(np.diag(found.value_AB), 1, atol=1e-12)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_given_features_have_the_golden_similarity(size: int) -> None:
    golden = np.load(GOLDEN / "cka.npz")
    x = [golden[f"gap_features__convnext_atto__stage{i}"] for i in range(1, 5)]
    name = "unbiased_full32" if size == 32 else f"unbiased_minibatch{size}"
    sums = Sums("unbiased")
    for i in range(0, 32, size):
        grams = np.stack([gram(torch.from_numpy(one[i : i + size])).numpy() for one in x])
        sums.add(grams, grams)
    expected = golden[f"convnext_atto__convnext_atto__gap__{name}"]
    np.testing.assert_allclose(sums.result()[0], expected, atol=1e-9)


@pytest.mark.parametrize("name", sorted(manifest("cka")["closed_form"]))
def test_small_cases_have_their_exact_values(name: str) -> None:
    case = manifest("cka")["closed_form"][name]
    x, y = (np.array(case[key], float) for key in "XY")
    k, m = (z @ z.T for z in (x, y))
    for pair, (left, right) in {"xy": (k, m), "xx": (k, k), "yy": (m, m)}.items():
        for number, hsic in (("0", hsic_biased), ("1", hsic_unbiased)):
            expected = float(Fraction(case[f"hsic{number}_{pair}"]))
            assert hsic(left[None], right[None])[0, 0] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for key, estimator in (("cka_biased", "biased"), ("cka_unbiased", "unbiased")):
        found = linear_cka(x, y, estimator)  # pyright: ignore[reportArgumentType]
        assert np.isnan(found) if case[key] is None else found == pytest.approx(case[key], rel=1e-12)


def test_independent_features_show_the_bias() -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((32, 500)) for _ in range(2))
    assert linear_cka(x, y, "biased") == pytest.approx(0.938, abs=5e-4)
    assert linear_cka(x, y) == pytest.approx(-0.005, abs=5e-4)


def test_orthogonal_maps_and_scales_change_nothing_and_scales_of_features_do() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 12)), rng.standard_normal((40, 12))
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    value = linear_cka(x, y + x)
    assert linear_cka(3 * x @ turn + 5, y + x) == pytest.approx(value, rel=1e-9)
    assert abs(linear_cka(x * np.linspace(0.1, 5, 12), y + x) - value) > 0.01


def test_leaving_images_out_equals_computing_without_them() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 9, 5)), rng.standard_normal((3, 9, 6))
    grams_x, grams_y = (np.einsum("anp,amp->anm", z, z) for z in (x, y))
    sums = Sums("unbiased")
    sums.add(grams_x, grams_y)
    for i in range(9):
        kept = np.delete(np.arange(9), i)
        direct = hsic_unbiased(grams_x[:, kept][:, :, kept], grams_y[:, kept][:, :, kept])
        np.testing.assert_allclose(sums._without[0][0][..., i], direct, rtol=1e-10, atol=1e-12)


def test_intervals_cover_the_similarity_of_the_population() -> None:
    """Two sets of features share a part: the similarity of the population is ||S_xy||^2 / (||S_xx|| ||S_yy||)."""
    rng, inside = np.random.default_rng(0), 0
    mix = rng.standard_normal((6, 6)) * 0.6
    cross, own = mix.T @ np.eye(6), mix.T @ mix + 0.5 * np.eye(6)
    true = (cross**2).sum() / np.sqrt(6 * (own**2).sum())
    for _ in range(200):
        x = rng.standard_normal((128, 6))
        y = x @ mix + rng.standard_normal((128, 6)) * 0.5**0.5
        sums = Sums("unbiased")
        for i in (0, 64):
            sums.add(*(gram(torch.from_numpy(z[i : i + 64]))[None].numpy() for z in (x, y)))
        _, low, high = sums.result()
        inside += bool(low[0, 0] <= true <= high[0, 0])
    assert 0.90 <= inside / 200 <= 0.99


def test_incomplete_batches_are_dropped_and_too_few_images_are_one_sentence(networks: dict[str, nn.Module]) -> None:
    network, images = networks["resnet18"], blocks()
    found = compare(network, network, in_batches(images[:20], 8), STAGES[-1:], STAGES[-1:])
    assert (found.images, found.batch, found.dropped, found.few) == (16, 8, 4, True)
    with pytest.raises(ValueError, match="at least 4 images in a batch; got 3"):
        compare(network, network, in_batches(images[:3], 3), STAGES[-1:], STAGES[-1:])
    with pytest.raises(ValueError, match="at least one complete batch"):
        compare(network, network, [], STAGES[-1:], STAGES[-1:])
    with pytest.raises(ValueError, match="there is no stage9"):
        compare(network, network, in_batches(images[:4], 4), ("stage9",), STAGES)
    constant = np.ones((8, 3))
    assert np.isnan(linear_cka(constant, np.random.default_rng(0).standard_normal((8, 3))))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("count", [5, 16, 33, 256])
def test_features_that_are_the_same_for_all_images_are_like_nothing(count: int, estimator: Any) -> None:
    """Rounding leaves a little of them, which must not be taken for a direction."""
    rng = np.random.default_rng(count)
    for value in (0.1, 1 / 3, 0.7, 1e3):
        same, other = np.full((count, 37), value) * rng.standard_normal(37), rng.standard_normal((count, 20))
        assert np.isnan(linear_cka(same, other, estimator))
        assert np.isnan(linear_cka(other, same, estimator))
        assert np.isnan(linear_cka(same, same, estimator))
    assert linear_cka(other, other, estimator) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_large_mean_of_the_features_changes_nothing(estimator: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 30))
    y = x + rng.standard_normal((64, 30))
    plain = linear_cka(x, y, estimator)
    assert linear_cka(x + 1e4, y - 1e4, estimator) == pytest.approx(plain, abs=1e-6)
