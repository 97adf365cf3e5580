from __future__ import annotations

import pytest
import torch

from resdet.classification.build import classifier
from resdet.detection.build import faster_rcnn_c4
from resdet.engine.compiled import compile_parts
from resdet.errors import InputError
from resdet.localization.build import per_class_rpn_localizer, region_localizer

SMALL = {"backbone": "resnet18-half", "num_classes": 2}


def compiled(net) -> list[str]:
    return [name for name, module in net.named_modules() if module._compiled_call_impl is not None]


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (faster_rcnn_c4, ["backbone", "neck", "rpn.head", "roi_head.embedding"]),
        (classifier, ["net"]),
        (per_class_rpn_localizer, ["backbone"]),
        (region_localizer, ["net"]),
    ],
)
def test_what_is_compiled(build, parts):
    net = build(**SMALL)
    assert compiled(compile_parts(net, "off")) == []
    assert compiled(compile_parts(net, "default")) == parts


def test_graphs_begin_a_new_step_with_each_batch(monkeypatch):
    steps = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    for mode, count in (("default", 0), ("reduce-overhead", 2)):
        net = compile_parts(faster_rcnn_c4(**SMALL, shorter_side=64), mode)
        for _ in range(2):
            net.preprocess([image])
        assert len(steps) == count


def test_blocks_computed_again_with_learning_bn():
    with pytest.raises(InputError, match=r"model.checkpoint with run.compile"):
        compile_parts(classifier(**SMALL, checkpoint=True), "default")
    compile_parts(faster_rcnn_c4(**SMALL, checkpoint=True), "default")  # its BN is frozen
