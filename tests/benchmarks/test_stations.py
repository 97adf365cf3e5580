import pytest
import torch

from resdet.benchmarks import stations
from resdet.benchmarks.nets import images_and_targets
from resdet.benchmarks.stations import STATIONS, Profile, places
from resdet.detection.build import faster_rcnn_fpn


class Steps:
    """Two stations, the second inside the first."""

    def outer(self) -> str:
        self.inner()
        return "done"

    def inner(self) -> None:
        pass


def test_the_time_of_an_inner_station_is_not_that_of_the_outer(monkeypatch):
    # The clock reads 0 at the start of outer, 1 and 5 around inner, 7 at the end: inner 4, outer 7 - 4 = 3.
    clock = iter([0.0, 1.0, 5.0, 7.0, 10.0, 11.0])
    monkeypatch.setattr(stations, "timer", lambda: next(clock))
    steps = Steps()
    profile = Profile([("head", steps, "inner"), ("rest", steps, "outer")])
    assert steps.outer() == "done"
    assert (profile.seconds["head"], profile.seconds["rest"]) == (4.0, 3.0)
    profile.clear()
    steps.inner()
    assert (profile.seconds["head"], profile.seconds["rest"]) == (1.0, 0.0)


def test_every_station_of_an_inference_is_found(monkeypatch):
    monkeypatch.setattr(stations.faster_rcnn, "suppress", stations.faster_rcnn.suppress)  # put back afterwards
    net = faster_rcnn_fpn(backbone="resnet18-half", num_classes=3, shorter_side=64, longer_side=96).eval()
    profile = Profile(places(net))
    net.predict(images_and_targets(1, (64, 96))[0])
    assert {station for station, seconds in profile.seconds.items() if seconds > 0} == set(STATIONS[:7])


def test_a_foreign_net_has_no_stations():
    assert places(torch.nn.Linear(1, 1)) == []


@pytest.mark.parametrize("place", [("nowhere", torch, "add")])
def test_unknown_stations_are_an_error(place, monkeypatch):
    monkeypatch.setattr(torch, "add", torch.add)
    profile = Profile([place])
    with pytest.raises(KeyError):
        torch.add(torch.ones(1), 1)
    assert set(profile.seconds) == set(STATIONS)
