from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resdet.errors import InputError
from resdet.evaluation.coco import evaluate_coco
from resdet.evaluation.coco_results import coco_results
from resdet.evaluation.coco_rows import load_results
from resdet.structures import Detections


def truth_of(*boxes, images=(1, 2), categories=((1, "cat"), (7, "dog"))):
    """Ground truth of rows (image id, category id, bbox), which may end in further fields."""
    rows = []
    for number, (image, category, box, *more) in enumerate(boxes, start=1):
        row = dict(id=number, image_id=image, category_id=category, bbox=box, area=box[2] * box[3], iscrowd=0)
        rows.append({**row, **(more[0] if more else {})})
    names = [dict(id=key, name=name) for key, name in categories]
    return dict(images=[dict(id=image) for image in images], categories=names, annotations=rows)


def row(image, category, box, score):
    return dict(image_id=image, category_id=category, bbox=box, score=score)


def random_set(seed):
    """Ids with holes, empty images, crowds, areas of masks, tied scores, detections near boxes and elsewhere."""
    rng = np.random.default_rng(seed)
    images, categories = [0, 3, 4, 900, 17, 2**40], [(9, "a"), (2, "b"), (50, "c"), (4, "never there")]
    boxes, results = [], []
    for image in images[:-1]:
        for _ in range(rng.integers(0, 9)):
            category = int(rng.choice([9, 2, 50]))
            box = [float(v) for v in (*rng.uniform(0, 200, 2), *rng.uniform(8, 150, 2))]
            extra = dict(iscrowd=int(rng.random() < 0.2), area=float(box[2] * box[3] * rng.uniform(0.3, 1)))
            boxes.append((image, category, box, extra))
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) * rng.normal(1, 0.08, 4)).tolist()
                wrong = int(rng.choice([9, 2, 50, 4]))
                score = round(float(rng.random()), 1)  # ties are wanted
                results.append(row(image, category if rng.random() < 0.8 else wrong, near, score))
    for _ in range(15):
        results.append(row(images[rng.integers(6)], 9, rng.uniform(1, 100, 4).tolist(), float(rng.random())))
    return truth_of(*boxes, images=images, categories=categories), results


def direct(ground_truth, results):
    """pycocotools as its own demonstration calls it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_one_of_two_found_by_hand():
    truth = truth_of((1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10]))
    figures = evaluate_coco(truth, [row(1, 1, [0, 0, 10, 8], 0.9)], backend="pycocotools")
    # IoU 80 / 100 = 0.8: right at the 7 thresholds 0.50 .. 0.80 of 10. There the recall is 1/2: precision 1 at the 51
    # recalls 0, 0.01 .. 0.5 of 101. Both boxes are small; there is none of medium size.
    assert figures.AP == figures.APs == pytest.approx(0.7 * 51 / 101)
    assert figures.AP50 == figures.AP75 == pytest.approx(51 / 101)
    assert figures.AR1 == figures.AR100 == figures.ARs == pytest.approx(0.7 * 0.5)
    assert figures.APm == figures.APl == figures.ARm == figures.ARl == -1
    cat, dog = figures.per_class
    assert (cat.name, cat.AP, cat.AP50, cat.boxes) == ("cat", figures.AP, figures.AP50, 2)
    assert dog == ("dog", None, None, 0)


def test_other_bounds_of_sizes():
    truth = truth_of((1, 1, [0, 0, 10, 10]), (2, 1, [0, 0, 10, 10]))
    figures = evaluate_coco(truth, [row(1, 1, [0, 0, 10, 8], 0.9)], size_bounds=(5, 10.5))  # sides of 10 are in between
    assert figures.APm == figures.AP and figures.APs == figures.APl == -1


def test_a_second_detection_of_a_box_is_wrong():
    box = [0, 0, 10, 10]
    results = [row(1, 1, box, 0.9), row(1, 1, box, 0.8), row(2, 1, box, 0.7)]
    # Right, wrong, right of 2 boxes: precision 1 at the 51 recalls to 0.5, 2/3 at the other 50.
    figures = evaluate_coco(truth_of((1, 1, box), (2, 1, box)), results)
    np.testing.assert_allclose(figures.AP, (51 + 50 * 2 / 3) / 101, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("backend", ["arrays", "pycocotools"])
def test_equals_pycocotools_to_the_last_digit(seed, backend):
    truth, results = random_set(seed)
    expected = direct(truth, results)
    figures = evaluate_coco(truth, results, backend=backend)
    assert list(figures[:12]) == expected.stats.tolist()
    assert [c.name for c in figures.per_class] == ["a", "b", "c", "never there"]
    precision = expected.eval["precision"]
    for place, name in enumerate(["b", "never there", "a", "c"]):  # by increasing id
        ours = next(c for c in figures.per_class if c.name == name)
        category = {"a": 9, "b": 2, "c": 50, "never there": 4}[name]
        counted = [a for a in truth["annotations"] if a["category_id"] == category and not a["iscrowd"]]
        assert ours.boxes == len(counted)
        if counted:
            curves = precision[:, :, place, 0, 2]
            assert ours[1:3] == (curves.mean(), curves[0].mean())
        else:
            assert (ours.AP, ours.AP50) == (None, None)


def test_array_equals_rows_and_arguments_stay(capsys):
    truth, results = random_set(0)
    kept = copy.deepcopy((truth, results))
    table = np.array([[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in results])
    assert evaluate_coco(truth, table) == evaluate_coco(truth, results)
    assert (truth, results) == kept
    assert capsys.readouterr() == ("", "")


def test_annotation_ids_and_missing_fields_do_not_matter():
    truth, results = random_set(1)
    for annotation in truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = evaluate_coco(truth, results)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number // 2  # from 0, and not unique
        del annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    assert evaluate_coco(truth, results) == expected


@pytest.mark.parametrize("empty", [[], np.zeros((0, 7)), np.zeros(0)])
def test_no_detections_score_zero(empty):
    figures = evaluate_coco(truth_of((1, 1, [0, 0, 10, 10])), empty)
    assert (figures.AP, figures.AP50, figures.APs, figures.AR100) == (0.0, 0.0, 0.0, 0.0)
    assert figures.per_class[0].AP == 0.0
    assert figures.per_class[1].AP is None


def perfect_set():
    crowd = (1, 1, [0, 0, 90, 90], dict(iscrowd=1))
    boxes = [(i, c, [20.1 * k, 3.7, 10.3, 11.9]) for i in (1, 2) for c in (1, 7) for k in range(3)]
    return truth_of(crowd, *boxes)


def test_ground_truth_as_detections_scores_exactly_one(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(perfect_set()))
    results = load_results(path)
    assert len(results) == 12  # of 13 annotations one is a crowd
    assert results[0] == row(1, 1, [0.0, 3.7, 10.3, 11.9], 1.0)
    figures = evaluate_coco(perfect_set(), results)
    assert figures.AP == figures.AP50 == figures.AP75 == figures.AR100 == 1.0
    assert [c.AP for c in figures.per_class] == [1.0, 1.0]


def test_boxes_without_area(tmp_path, caplog):
    path = tmp_path / "instances.json"
    truth = truth_of((1, 1, [0, 0, 10, 10]), (1, 1, [5, 5, 0, 3]), (2, 7, [5, 5, 2, -1]))
    path.write_text(json.dumps(truth))
    results = load_results(path)
    assert results == [row(1, 1, [0.0, 0.0, 10.0, 10.0], 1.0)]
    assert caplog.messages == [f"{path}: 2 boxes without area are left out"]
    assert list(evaluate_coco(truth, results)[:12]) == direct(truth, results).stats.tolist()


def test_load_results_reads_what_json_writes(tmp_path):
    path = tmp_path / "results.json"
    _, results = random_set(2)
    path.write_text(json.dumps(results))
    assert load_results(path) == results
    path.write_text("[]")
    assert load_results(str(path)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "broken JSON"),
        ("\xff\xfe\xff", "broken JSON"),
        ("3", "found:  a JSON int\n"),
        ('{"images": [], "boxes": []}', "a JSON dict with keys images, boxes"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]', "row 0\n  found:  no score, only image_id"),
        (
            '[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}, 5]',
            "row 1\n  found:  5, not an object",
        ),
        ('{"annotations": [{"image_id": 1, "category_id": 1}]}', "row 0\n  found:  no bbox"),
        ('{"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "iscrowd": "no"}]}', "iscrowd 'no'"),
    ],
)
def test_load_results_errors(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as error:
        load_results(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_load_results_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_results(tmp_path / "none.json")


GOOD = row(1, 1, [0, 0, 1, 1], 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_id=5), r"image_id 5 \(row 1\), which the ground truth lacks; 1 of 2 rows .*\n.*one of: 1, 2$"),
        (dict(category_id=2), r"category_id 2 \(row 1\).*\n.*one of: 1 \(cat\), 7 \(dog\)$"),
        (dict(score=float("nan")), "row 1\n.*score nan\n.*a finite score"),
        (dict(score="0.5"), "score '0.5'"),
        (dict(score=None), "score None"),
        (dict(bbox=[0, 0, 1]), r"bbox \[0, 0, 1\]"),
        (dict(bbox=[0, 0, float("nan"), 1]), "bbox .*nan"),
        (dict(bbox=[5, 5, -1, 1]), "negative size"),
        (dict(bbox="0 0 1 1"), "bbox '0 0 1 1'"),
        (dict(image_id="1"), "image_id '1'"),
        (dict(category_id=1.5), "category_id 1.5"),
    ],
)
def test_bad_rows(change, message):
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth_of((1, 1, [0, 0, 10, 10])), [GOOD, {**GOOD, **change}])


def test_bad_arrays():
    truth = truth_of((1, 1, [0, 0, 10, 10]))
    with pytest.raises(InputError, match=r"shape \(2, 6\)"):
        evaluate_coco(truth, np.zeros((2, 6)))
    with pytest.raises(InputError, match="image_id nan"):
        evaluate_coco(truth, np.full((1, 7), np.nan))


def broken(**changes):
    return {**truth_of((1, 1, [0, 0, 10, 10])), **changes}


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"images": [], "annotations": []}, "no list categories"),
        ({}, "no list images, annotations, categories"),
        (broken(annotations=[]), "0 annotations, none but crowds"),
        (truth_of((1, 1, [0, 0, 1, 1], dict(iscrowd=1))), "1 annotations, none but crowds"),
        (broken(images=[{"id": 1}, {"id": 1}]), r"images\[1\]\n.*id 1 again"),
        (broken(images=["a"]), r"images\[0\]\n  found:  a\n.*integer id"),
        (broken(categories=[{"id": 1}]), r"categories\[0\]\n.*\n.*and a name"),
        (broken(images=[{"id": 2}]), r"annotations\n.*image_id 1 \(row 0\)"),
        (broken(categories=[{"id": 2, "name": "x"}]), r"annotations\n.*category_id 1 \(row 0\)"),
        (truth_of((1, 1, [0, 0, 1, 1], dict(area="big"))), "area 'big'"),
    ],
)
def test_bad_ground_truth(truth, message):
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth, [])


def test_long_lists_of_ids_are_cut():
    truth = truth_of((1, 1, [0, 0, 1, 1]), images=range(1, 51))
    with pytest.raises(InputError, match=r"29, 30, and 20 more$"):
        evaluate_coco(truth, [row(99, 1, [0, 0, 1, 1], 0.5)])


def test_backends(monkeypatch):
    truth, results = random_set(3)
    with pytest.raises(InputError, match=r"'slow'\n.*arrays, pycocotools"):
        evaluate_coco(truth, results, backend="slow")
    calls, evaluate = [], COCOeval.evaluate
    monkeypatch.setattr(COCOeval, "evaluate", lambda self: (calls.append(self.params.iouType), evaluate(self)))
    expected = evaluate_coco(truth, results, backend="pycocotools")
    assert calls == ["bbox"]
    assert evaluate_coco(truth, results) == expected
    assert len(calls) == 1


def test_coco_results_speak_xywh_and_file_ids():
    detections = Detections(
        torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.5, 0.0, 1.0, 1.0]]), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])
    )
    rows = coco_results(detections, 42, np.array([3, 90]))
    assert rows == [row(42, 90, [1.0, 2.0, 3.0, 6.0], 0.75), row(42, 3, [0.5, 0.0, 0.5, 1.0], 0.5)]
    assert json.loads(json.dumps(rows)) == rows
    assert coco_results(Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)), 1, [3]) == []


@pytest.mark.parametrize("label", [2, -1])
def test_coco_results_refuse_a_label_out_of_range(label):
    detections = Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([label]))
    with pytest.raises(InputError, match=rf"image 42\n.*label {label}\n.*\[0, 2\)"):
        coco_results(detections, 42, np.array([3, 90]))


@pytest.mark.parametrize("key", ["image_id", "bbox", "score"])
def test_numbers_that_do_not_fit(key):
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0}],
    }
    row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1}
    huge = {"image_id": 2**53 + 1, "bbox": [0, 0, 10**400, 5], "score": 10**400}[key]
    with pytest.raises(InputError, match=key):
        evaluate_coco(truth, [{**row, key: huge}])
    truth["images"][0]["id"] = 2**53 + 1
    with pytest.raises(InputError, match="images"):
        evaluate_coco(truth, [row])


def test_more_than_a_hundred_objects(caplog):
    boxes = [[11.0 * (k % 20), 11.0 * (k // 20), 10.0, 10.0] for k in range(250)]
    truth = truth_of(*((1, 1, box) for box in boxes))
    results = [row(1, 1, box, 1 - k / 1000) for k, box in enumerate(boxes)]
    cut = evaluate_coco(truth, results)
    assert pytest.approx(0.4) == cut.AR100 and cut.AP < 0.45  # 100 of 250
    assert "150 detections are not looked at" in caplog.text and "test.max_detections" in caplog.text
    caplog.clear()
    whole = evaluate_coco(truth, results, max_detections=250)
    assert pytest.approx(1) == whole.AP and whole.AR100 == 1 and not caplog.records
    for most in (100, 130, 250):
        ours, theirs = (
            evaluate_coco(truth, results, backend=b, max_detections=most) for b in ("arrays", "pycocotools")
        )
        assert ours == theirs
