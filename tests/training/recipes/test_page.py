"""report.html of a run that was made up, read by the standard library's parser."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

from m2kit.runtime.codebook import report_of_tokens
from m2kit.training.recipes.page import figure_of_grid, grid_layout, write_page
from m2kit.training.recipes.run_folder import Trained
from m2kit.training.recipes.settings import RunSettings

HOSTILE = '<script>alert("1")</script> & <img src=http://x>'
VOID = {"meta", "img", "source"}
PANELS = {"loss": ["loss", "held_out_loss", "held_out_psnr"], "rate": ["learning_rate"]}


@dataclass(frozen=True, slots=True)
class Outcome(Trained):
    held_out_decibels: float
    codebook_usage: float
    held_out_psnr_db: float


class Reader(HTMLParser):
    """Tags in order, attributes and text; closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts, self.bad, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.addresses += [v for n, v in attrs if n in ("src", "srcset", "href", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if named.get("class") == "bad":
            self.bad.append(len(self.texts))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,epoch,loss,held_out_loss,held_out_psnr,learning_rate\n2,0.5,3.0,,,0.1\n"
        "4,1.0,2.0,2.5,19.0,0.05\n6,1.5,1.0,2.25,19.5,0.01\n"
    )
    settings = RunSettings(
        data="x",
        epochs=2,
        steps=6,
        batch=4,
        learning_rate=0.1,
        ema_decay=0.5,
        seed=0,
        decay="drops",
        drops=(1.0, 2.0),
    )
    tokens = np.array([[[0], [1], [5], [4], [5]]])  # of three bits the second is never set
    write_page(
        tmp_path,
        "Made up",
        Outcome(
            data=HOSTILE,
            settings=settings,
            held_out_decibels=21.75,
            codebook_usage=1.0,
            held_out_psnr_db=20.5,
        ),
        panels=PANELS,
        figures=[figure_of_grid(HOSTILE, np.zeros((4, 3, 8, 8), np.float32), columns=2)],
        codebooks={"held-out pictures": report_of_tokens(tokens, (8,), "lsb")},
        environment={"command": HOSTILE, "finished": "today", "gpu": None},
    )
    return Reader((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_page_needs_no_other_file_and_asks_no_network(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.addresses
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,")
    text = "".join(page.texts)
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text
    assert "@import" not in text


def test_what_is_told_is_text_and_never_a_part_of_the_page(page):
    assert page.tags.count("img") == 2  # the pictures and the curves
    told = [text for text in page.texts if HOSTILE in text]
    assert len(told) == 3  # the data set, the caption, the command


def test_measures_stand_first_and_all_parts_follow(page):
    parts = [
        "Made up", "held out decibels", "21.75", "Last measurement, step 6, epoch 1.5",
        "held out loss", "2.25", "Pictures", "Curves", "Codebook: held-out pictures", "codes used",
        "Settings", "drops", "1, 2", "Environment", "command", "gpu", "none",
    ]  # fmt: skip
    places = [0]
    for part in parts:
        places.append(page.texts.index(part, places[-1] + 1))


def test_numbers_say_what_they_are(page):
    def after(name):
        return page.texts[page.texts.index(name) + 1]

    assert after("codebook usage") == "100.00%"
    assert after("held-out PSNR in dB, mean over pictures of 8 bits a colour") == "20.5"
    floats = "held-out PSNR in dB, mean over pictures of floats, as while it trained"
    assert after(floats) == "19.5"
    assert after("steps") == "6"
    assert "epochs" not in page.texts


def test_a_dead_bit_stands_out(page):
    assert [page.texts[place : place + 2] for place in page.bad] == [
        ["dead bits", "1 (always -1)"],
        ["bit 1", "0.000"],
    ]


def test_pictures_of_any_size_find_a_place():
    assert grid_layout((32, 32)) == (10, 10)
    rows, columns = grid_layout((256, 256))
    assert (rows, columns) == (3, 5)
    assert grid_layout((2048, 2048)) == (1, 1)
