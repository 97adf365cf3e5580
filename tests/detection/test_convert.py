from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from resdet.detection.convert import from_torchvision
from resdet.errors import InputError


def test_names_and_rows_by_hand():
    rows = torch.arange(3.0)  # background, class 0, class 1
    ours = from_torchvision(
        {
            "backbone.body.layer1.0.conv1.weight": rows,
            "backbone.fpn.inner_blocks.2.0.bias": rows,
            "backbone.fpn.layer_blocks.3.0.weight": rows,
            "rpn.head.conv.0.0.weight": rows,
            "rpn.head.cls_logits.bias": rows,
            "rpn.head.bbox_pred.weight": rows,
            "roi_heads.box_head.fc7.bias": rows,
            "roi_heads.box_predictor.cls_score.bias": rows,
            "roi_heads.box_predictor.cls_score.weight": rows[:, None].expand(3, 2),
            "roi_heads.box_predictor.bbox_pred.bias": rows.repeat_interleave(4),
        }
    )
    assert_close(
        ours,
        {
            "backbone.layer1.0.conv1.weight": rows,
            "neck.lateral.2.bias": rows,
            "neck.output.3.weight": rows,
            "rpn.head.conv.weight": rows,
            "rpn.head.objectness.bias": rows,
            "rpn.head.deltas.weight": rows,
            "roi_head.embedding.fc7.bias": rows,
            "roi_head.class_logits.bias": torch.tensor([1.0, 2, 0]),  # background last
            "roi_head.class_logits.weight": torch.tensor([[1.0, 1], [2, 2], [0, 0]]),
            "roi_head.box_deltas.bias": torch.tensor([1.0] * 4 + [2.0] * 4),  # none for the background
        },
    )


def test_names_of_older_files():
    value = torch.ones(1)
    old = from_torchvision({"backbone.fpn.inner_blocks.0.weight": value, "rpn.head.conv.bias": value})
    assert set(old) == {"neck.lateral.0.weight", "rpn.head.conv.bias"}


def test_every_key_must_find_its_place():
    with pytest.raises(InputError) as caught:  # of fasterrcnn_resnet50_fpn_v2 and of Mask R-CNN
        from_torchvision(
            dict.fromkeys(
                ("rpn.head.conv.1.0.weight", "rpn.head.conv.0.0.weight", "rpn.head.conv.weight_g", "mask.weight"),
                torch.ones(1),
            )
        )
    assert str(caught.value).splitlines() == [
        "torchvision detector",
        "  found:  3 keys without a place in our net: rpn.head.conv.1.0.weight, rpn.head.conv.weight_g, mask.weight",
        "  needed: a Faster R-CNN with FPN, as its model.state_dict() gives it",
    ]


def test_nothing():
    assert from_torchvision({}) == {}
