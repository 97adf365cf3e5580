from __future__ import annotations

import pytest

from resdet.errors import InputError
from resdet.inference.settings import TestSettings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scales": (200, 400, 600, 800, 1000), "scale_proposals": "all"},  # the paper's
        {"scales": (64,)},
        {"vote": 1.0, "refine": 3, "region_side": 1},
        {"flip": True, "merge": "wbf"},
        {"sizes": (96, 64), "merge": "wbf"},  # in any order
        {"tiles": 64, "tile_overlap": 0.0, "merge": "wbf"},
    ],
)
def test_what_makes_sense(settings):
    assert TestSettings(**settings).updated() == TestSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "found", "needed"),
    [
        ({"scales": (400, 200)}, "(400, 200)", "shorter sides in rising order, as (400, 600, 800)"),
        ({"scales": (64, 64)}, "(64, 64)", "shorter sides in rising order, as (400, 600, 800)"),
        ({"scales": (0, 64)}, "(0, 64)", "tuple[int, ...], a number in [1, inf] each"),
        ({"sizes": (64, 64)}, "(64, 64)", "different shorter sides in pixels, 1 or more"),
        ({"vote": 0.0}, "0.0", "a number above 0, 1 at most"),
        ({"vote": 1.1}, "1.1", "a number above 0, 1 at most"),
        ({"scale_proposals": "all"}, "'all' without test.scales", "test.scales=(...)"),
        ({"merge": "wbf"}, "'wbf' with one look only", "test.flip=True, test.sizes=(...) or test.tiles=PIXELS"),
        ({"tiles": 63}, "63", "a number in [64, inf]"),
        ({"tile_overlap": 0.9}, "0.9", "a number in [0, 0.9)"),
        ({"tile_overlap": -0.1}, "-0.1", "a number in [0, 0.9)"),
        ({"refine": -1}, "-1", "a number in [0, inf]"),
        ({"region_side": 0.0}, "0.0", "a number in [1, inf]"),
        ({"sigma": 0.0}, "0.0", "a number above 0"),
    ],
)
def test_what_makes_none(settings, found, needed):
    with pytest.raises(InputError) as caught:
        TestSettings(**settings)
    name = next(iter(settings))
    assert str(caught.value) == f"test.{name}\n  found:  {found}\n  needed: {needed}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(merge="wfb", flip=True), r"test.merge\n  found:  'wfb'\n.*wbf"),
        (dict(nms="soft"), "hard"),
        (dict(scale_proposals="every"), "one"),
        (dict(nms_iou=3.0), r"\[0, 1\]"),
        (dict(score_threshold=-0.1), r"\[0, 1\]"),
        (dict(max_per_image=0), r"\[1, inf\]"),
    ],
)
def test_values_out_of_range(settings, words):
    with pytest.raises(InputError, match=words):
        TestSettings(**settings)


@pytest.mark.parametrize(
    "further", [{"scales": (64, 128)}, {"sizes": (64,)}, {"flip": True}, {"ensemble": ("a.pth",)}, {"tiles": 64}]
)
def test_cuda_graphs_are_for_one_look(further):
    TestSettings(compile="reduce-overhead")
    with pytest.raises(InputError, match="more than one look"):
        TestSettings(compile="reduce-overhead", **further)
