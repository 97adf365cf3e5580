import pytest
from PIL import Image

from resdet.datasets.lenience import header_hw, is_lenient, lenient
from resdet.errors import InputError


def test_headers_of_bad_files_are_zero_in_it_alone(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"none")
    with pytest.raises(ZeroDivisionError), lenient():
        assert is_lenient()
        assert [header_hw(tmp_path / f"{name}.png") for name in "abc"] == [(6, 8), (0, 0), (0, 0)]
        raise ZeroDivisionError
    assert not is_lenient()
    with pytest.raises(InputError, match="does not decode"):
        header_hw(tmp_path / "b.png")
