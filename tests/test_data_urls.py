"""``data:`` URLs (RFC 2397)."""

import pytest

from millstream.data_urls import Held, held_by


@pytest.mark.parametrize(
    ("url", "held"),
    [
        ("data:image/png;base64,AA==", Held("image/png", "AA==")),
        ("data:image/png;charset=utf-8;base64,AA==", Held("image/png", "AA==")),
        ("data:text/plain;a=1;b=2;base64,AA==", Held("text/plain", "AA==")),
        ("DATA:Image/PNG;BASE64,AA==", Held("image/png", "AA==")),
        ("data:text/csv;charset=utf-8,a%C3%A9", Held("text/csv", "YcOp")),
        ("data:;base64,AA==", Held("", "AA==")),
        ("data:,a,b", Held("", "YSxi")),
        ("data:image/png;base64", Held("image/png", "")),
        ("https://a.example/b,c", None),
        ("", None),
    ],
)
def test_what_a_url_holds(url: str, held: Held | None) -> None:
    assert held_by(url) == held


@pytest.mark.parametrize("data", ["?", "/w=="])
def test_what_is_no_text_is_told(data: str) -> None:
    with pytest.raises(ValueError):
        Held("text/plain", data).text()
