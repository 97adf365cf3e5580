from __future__ import annotations

import pytest

from resdet.errors import InputError
from resdet.localization.settings import LocalizationTest


def test_defaults_and_the_papers_settings_are_legal():
    LocalizationTest()
    settings = LocalizationTest(view="dense", sides=(224, 256, 384, 480, 640), vote=0.5, top=5, proposals=200)
    assert settings.sides == (224, 256, 384, 480, 640)


@pytest.mark.parametrize(
    ("wrong", "needed"),
    [
        (dict(view="center"), "did you mean 'centre'"),
        (dict(sides=(256, 256)), "different shorter sides"),
        (dict(sides=(0,)), r"tuple\[int"),
        (dict(vote=0.0), "above 0, 1 at most"),
        (dict(nms_iou=1.5), r"in \[0, 1\]"),
        (dict(proposals=0), r"\[1, inf\]"),
        (dict(top=0), r"\[1, inf\]"),
    ],
)
def test_errors(wrong, needed):
    with pytest.raises(InputError, match=needed) as error:
        LocalizationTest(**wrong)
    assert f"test.{next(iter(wrong))}" in str(error.value)
