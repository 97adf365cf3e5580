from __future__ import annotations

import numpy as np
import pytest
import torch

from resdet.datasets.modern_view import ERASED, ModernView
from resdet.errors import InputError


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("policy", ["none", "rand", "trivial"])
def test_a_view_is_a_pure_function_of_the_generator(policy):
    view, image = ModernView(crop=24, policy=policy, erase=0.5), picture()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    seen = [view(image, np.random.default_rng(seed)) for seed in range(6)]
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's chance is touched
    assert all(v.shape == (24, 24, 3) and v.dtype == np.uint8 for v in seen)
    torch.manual_seed(2)
    for seed, first in enumerate(seen):
        np.testing.assert_array_equal(view(image, np.random.default_rng(seed)), first)
    assert len({v.tobytes() for v in seen}) == 6


def test_without_chance_it_is_the_image():
    image = picture(32, 32)
    whole = ModernView(crop=32, least_area=1.0, policy="none", erase=0.0, flip=0.0)
    np.testing.assert_array_equal(whole(image, np.random.default_rng(0)), image)
    mirrored = ModernView(crop=32, least_area=1.0, policy="none", erase=0.0, flip=1.0)
    np.testing.assert_array_equal(mirrored(image, np.random.default_rng(0)), image[:, ::-1])


def test_erasing_leaves_the_mean_colour():
    view = ModernView(crop=32, least_area=1.0, policy="none", erase=1.0, flip=0.0)
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    seen = view(image, np.random.default_rng(0))
    erased = (seen == np.array(ERASED)).all(-1)
    assert 0.02 * 1024 <= erased.sum() <= 0.34 * 1024  # the paper's shares, 0.02 to 1/3
    assert (seen[~erased] == 0).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"policy": "tivial"}, "'trivial'"), ({"least_area": 0.0}, "least_area = 0.0"), ({"erase": 2.0}, "erase = 2.0")],
)
def test_refusals(settings, words):
    with pytest.raises(InputError, match=words):
        ModernView(**settings)
