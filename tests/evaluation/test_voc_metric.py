from __future__ import annotations

import numpy as np
import pytest
import torch

from resdet.errors import InputError
from resdet.evaluation.voc import VocDetections, VocTruth, evaluate_voc, voc_detections, voc_truth
from resdet.structures import Detections

BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def truth_of(*rows, num_images=2):
    """Rows (image, label, box) or (image, label, box, difficult)."""
    ignore = np.array([len(r) > 3 and r[3] for r in rows], bool)
    boxes = np.array([r[2] for r in rows], np.float32).reshape(-1, 4)
    return VocTruth(boxes, np.array([r[1] for r in rows], int), ignore, np.array([r[0] for r in rows], int), num_images)


def found_of(*rows):
    """Rows (image, label, box, score)."""
    boxes = np.array([r[2] for r in rows], np.float32).reshape(-1, 4)
    images, labels, scores = (np.array([r[i] for r in rows], t) for i, t in ((0, int), (1, int), (3, float)))
    return VocDetections(boxes, scores, labels, images)


def slow_ap(truth, found, label, iou, method):
    """The protocol of the kit, one box at a time."""
    boxes = [i for i in range(len(truth.labels)) if truth.labels[i] == label]
    total = sum(not truth.ignore[i] for i in boxes)
    if total == 0:
        return None
    taken, tp, fp, curve = set(), 0, 0, []
    for d in sorted((d for d in range(len(found.labels)) if found.labels[d] == label), key=lambda d: -found.scores[d]):
        best, owner = -1.0, None
        for i in boxes:
            if truth.images[i] != found.images[d]:
                continue
            a, b = found.boxes[d].astype(float), truth.boxes[i].astype(float)
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if w > 0 and h > 0:
                union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
                if w * h / union > best:
                    best, owner = w * h / union, i
        if best >= iou and truth.ignore[owner]:
            continue
        if best >= iou and owner not in taken:
            taken.add(owner)
            tp += 1
        else:
            fp += 1
        curve.append((tp / total, tp / (tp + fp)))
    if method == "11point":
        return sum(max([p for r, p in curve if r >= t], default=0.0) for t in np.arange(0.0, 1.1, 0.1)) / 11
    area, last = 0.0, 0.0
    for place, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[place:])
        last = recall
    return area


def random_set(seed, classes=4, images=12):
    rng = np.random.default_rng(seed)
    rows, found = [], []
    for _ in range(60):
        image, label = int(rng.integers(images - 1)), int(rng.integers(classes - 1))  # last image and class stay empty
        box = np.concatenate([corner := rng.uniform(0, 60, 2), corner + rng.uniform(5, 50, 2)])
        rows.append((image, label, box, bool(rng.random() < 0.25)))
        for _ in range(rng.integers(0, 4)):
            near = box + rng.normal(0, 2, 4)
            found.append((image, label, near, float(rng.random())))
    for _ in range(40):
        corner = rng.uniform(0, 60, 2)
        box = np.concatenate([corner, corner + rng.uniform(5, 50, 2)])
        found.append((int(rng.integers(images)), int(rng.integers(classes)), box, float(rng.random())))
    return truth_of(*rows, num_images=images), found_of(*found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["area", "11point"])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_equals_the_slow_reference(seed, method, iou):
    truth, found = random_set(seed)
    figures = evaluate_voc(truth, found, classes="abcd", iou=iou, method=method)
    expected = [slow_ap(truth, found, label, iou, method) for label in range(4)]
    assert expected[3] is None
    assert figures.per_class[3].AP is None
    assert figures.per_class[3].recall is None
    ours = [row.AP for row in figures.per_class[:3]]
    np.testing.assert_allclose(ours, expected[:3], rtol=0, atol=1e-12)
    assert min(ours) > 0
    assert figures.mAP == pytest.approx(np.mean(expected[:3]), abs=1e-12)
    shuffle = np.random.default_rng(seed).permutation(len(found.labels))
    assert (
        evaluate_voc(truth, VocDetections(*(c[shuffle] for c in found)), classes="abcd", iou=iou, method=method)
        == figures
    )


def test_right_wrong_right_by_hand():
    truth = truth_of((0, 0, BOX), (1, 0, BOX))
    found = found_of((0, 0, BOX, 0.9), (0, 0, FAR, 0.8), (1, 0, BOX, 0.7))
    # Right, wrong, right of 2 boxes: recalls 1/2, 1/2, 1; precisions 1, 1/2, 2/3, enveloped 1, 2/3, 2/3.
    figures = evaluate_voc(truth, found, classes=["cell"])
    assert figures.mAP == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert figures.per_class[0] == ("cell", figures.mAP, 1.0, 2, 3)
    # The recalls 0 .. 0.5 read 1 (six of them), 0.6 .. 1 read 2/3 (five).
    assert evaluate_voc(truth, found, classes=["cell"], method="11point").mAP == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_a_box_is_wrong():
    truth = truth_of((0, 0, BOX), (1, 0, BOX))
    found = found_of((0, 0, BOX, 0.9), (0, 0, [0, 0, 10, 9], 0.8), (1, 0, BOX, 0.7))
    assert evaluate_voc(truth, found, classes=["cell"]).mAP == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_the_best_box_decides_even_when_it_is_taken():
    # Both detections overlap A most. The second overlaps free B by 85 / 115, enough, yet is a duplicate of A.
    a, b = [0, 0, 10, 10], [0, 2, 10, 12]
    truth = truth_of((0, 0, a), (0, 0, b))
    found = found_of((0, 0, a, 0.9), (0, 0, [0, 0.5, 10, 10.5], 0.8))
    assert evaluate_voc(truth, found, classes=["cell"]).per_class[0].recall == 0.5


def test_difficult_boxes_are_neither_right_nor_wrong():
    easy = truth_of((0, 0, BOX))
    hard = truth_of((0, 0, BOX), (0, 0, FAR, True), (1, 0, BOX, True))
    found = found_of((0, 0, FAR, 0.95), (0, 0, FAR, 0.94), (1, 0, BOX, 0.93), (0, 0, BOX, 0.9))
    assert evaluate_voc(hard, found, classes=["cell"]).mAP == 1.0
    assert evaluate_voc(hard, found, classes=["cell"], method="11point").mAP == 1.0
    assert evaluate_voc(hard, found_of(), classes=["cell"]).per_class[0] == ("cell", 0.0, 0.0, 1, 0)
    # Without the difficult boxes those three are wrong: 1 of 4 right, at the end.
    assert evaluate_voc(easy, found, classes=["cell"]).mAP == 0.25


def test_the_threshold_itself_is_enough_and_widths_are_not_padded():
    # Devkit corners (1, 1, 10, 10) and (1, 1, 10, 5) are 10x10 and 10x5 pixels: overlap 50 / 100, just enough.
    truth, found = truth_of((0, 0, BOX)), found_of((0, 0, [0, 0, 10, 5], 0.5))
    assert evaluate_voc(truth, found, classes=["cell"]).mAP == 1.0
    assert evaluate_voc(truth, found, classes=["cell"], iou=0.51).mAP == 0.0


def test_ties_go_to_the_first_row():
    # Three scores in turn, every right row before every wrong one. From the best score down 50 right, 50 wrong, thrice:
    # the envelope is 1, then 100 / 150, then 150 / 250, each over a third of the recall.
    truth = truth_of(*((image, 0, BOX) for image in range(150)), num_images=150)
    found = found_of(*((image, 0, box, 0.9 - 0.3 * (image % 3)) for box in (BOX, FAR) for image in range(150)))
    assert evaluate_voc(truth, found, classes=["cell"]).mAP == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Of two equal overlaps the first box counts; the second, a difficult one, would leave the detection out.
    truth = truth_of((0, 0, BOX), (0, 0, BOX, True))
    assert evaluate_voc(truth, found_of((0, 0, BOX, 0.5)), classes=["cell"]).mAP == 1.0


def test_images_and_classes_are_kept_apart():
    truth = truth_of((0, 0, BOX), (1, 1, BOX))
    assert evaluate_voc(truth, found_of((1, 0, BOX, 0.9), (0, 1, BOX, 0.9)), classes="ab").mAP == 0.0


@pytest.mark.parametrize("method", ["area", "11point"])
def test_perfect_detections_score_exactly_one(method):
    truth, _ = random_set(5)
    apart = truth.boxes + 100 * np.arange(len(truth.boxes), dtype=np.float32)[:, None]  # no two boxes overlap
    truth = truth._replace(boxes=apart)
    found = VocDetections(apart, np.ones(len(apart)), truth.labels, truth.images)
    figures = evaluate_voc(truth, found, classes="abcd", method=method)
    np.testing.assert_allclose([row.AP for row in figures.per_class[:3]], 1, rtol=0, atol=1e-15)
    assert [row.recall for row in figures.per_class[:3]] == [1.0, 1.0, 1.0]
    assert figures.mAP == 1.0


def test_no_detections_and_degenerate_ones_score_zero():
    truth = truth_of((0, 0, BOX))
    assert evaluate_voc(truth, found_of(), classes="ab").mAP == 0.0
    assert evaluate_voc(truth, found_of((0, 0, [5, 5, 5, 9], 0.5), (0, 0, [9, 9, 1, 1], 0.5)), classes="ab").mAP == 0.0
    assert evaluate_voc(truth_of((0, 0, [5, 5, 5, 5])), found_of((0, 0, [5, 5, 5, 5], 1.0)), classes="a").mAP == 0.0


def test_arrays_of_a_data_set():
    class Set:
        boxes = np.array([BOX, FAR, BOX], np.float32)
        labels, ignore, first = np.array([0, 1, 0]), np.array([False, True, False]), np.array([0, 2, 2, 3])

        def __len__(self):
            return 3

    truth = voc_truth(Set())
    assert truth.images.tolist() == [0, 0, 2]
    assert truth.num_images == 3
    answer = Detections(torch.tensor([BOX]), torch.tensor([0.5]), torch.tensor([0]))
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    found = voc_detections([(2, answer), (1, none), (0, answer)])
    assert found.images.tolist() == [2, 0]
    assert evaluate_voc(truth, found, classes="ab").per_class[0].AP == 1.0
    assert evaluate_voc(truth, voc_detections([]), classes="ab").mAP == 0.0


TRUTH, FOUND = truth_of((0, 0, BOX), (1, 1, BOX)), found_of((0, 0, BOX, 0.5), (0, 1, BOX, 0.5))


@pytest.mark.parametrize(
    ("truth", "found", "settings", "message"),
    [
        (TRUTH, FOUND, dict(method="12point"), "'12point'\n.*area or 11point"),
        (TRUTH, FOUND, dict(iou=0), r"found:  0\n.*\(0, 1\]"),
        (TRUTH, FOUND, dict(iou=50), "found:  50"),
        (TRUTH, FOUND, dict(classes="a"), r"ground truth, labels\[1\]\n.*found:  1\n.*\[0, 1\)"),
        (TRUTH, FOUND._replace(labels=np.array([0, -1])), {}, r"detections, labels\[1\]\n.*found:  -1"),
        (TRUTH, FOUND._replace(labels=np.array([0.5, np.nan])), {}, r"labels\[0\]\n.*found:  0.5\n.*whole number"),
        (TRUTH, FOUND._replace(images=np.array([0, 2])), {}, r"detections, images\[1\]\n.*found:  2"),
        (TRUTH, FOUND._replace(scores=np.array([0.5, np.nan])), {}, r"scores\[1\]\n.*found:  nan"),
        (TRUTH, FOUND._replace(boxes=np.full((2, 4), np.inf)), {}, r"boxes\[0\]\n.*\n.*finite"),
        (TRUTH, FOUND._replace(boxes=np.zeros((3, 4))), {}, r"shape \(3, 4\)\n.*shape \(2, 4\)"),
        (TRUTH, FOUND._replace(scores=np.zeros(1)), {}, r"scores\n.*shape \(1,\)"),
        (TRUTH._replace(ignore=np.array([True, True])), FOUND, {}, "2 boxes, none but difficult"),
        (truth_of(), FOUND, {}, "0 boxes, none but difficult"),
    ],
)
def test_errors(truth, found, settings, message):
    with pytest.raises(InputError, match=message):
        evaluate_voc(truth, found, **{"classes": "ab", **settings})


@pytest.mark.parametrize(("found", "points"), [(3, 3), (6, 6), (7, 7), (1, 2), (4, 5), (5, 6), (10, 11)])
def test_recalls_on_a_point_count_as_in_the_reference_codes(found, points):
    # Of ten objects so many are found, all detections right: precision 1 up to a recall of found / 10. The points are
    # 0, 0.1, 0.2, 0.30000000000000004, ...: 3/10, 6/10 and 7/10 do not reach their own.
    boxes = np.array([[20.0 * i, 0, 20 * i + 10, 10] for i in range(10)])
    truth = VocTruth(boxes, np.zeros(10, int), np.zeros(10, bool), np.zeros(10, int), 1)
    rows = slice(0, found)
    detections = VocDetections(boxes[rows], np.linspace(0.9, 0.5, found), np.zeros(found, int), np.zeros(found, int))
    report = evaluate_voc(truth, detections, classes=("a",), method="11point")
    assert report.mAP == pytest.approx(points / 11)
