"""The loader beside decoding alone, and COCO's evaluation beside pycocotools. No time is asserted."""

from resdet.benchmarks.data import decode_share
from resdet.benchmarks.evaluation import time_evaluation


def test_each_way_to_images_has_a_row():
    rows = decode_share(hw=(48, 64), images=8, runs=1, least_side=64)
    assert [row.work for row in rows] == [
        *("decoding alone", "decoding by Pillow", "loader", "loader with flips"),
        *("decoding alone, large", "loader, large", "loader reduced, large"),
    ]
    assert all(row.images_per_second > 0 for row in rows) and rows[0].share == rows[4].share == 1


def test_both_evaluations_have_the_same_figures():
    ours, theirs = time_evaluation(images=6, detections=4, classes=3)
    assert (ours.backend, theirs.backend) == ("arrays", "pycocotools")
    assert theirs.difference < 1e-9 and theirs.ratio == 1 and ours.ratio == theirs.seconds / ours.seconds
