"""The report's words and drawings. What the whole command prints is in test_cli.py."""

from html.parser import HTMLParser

import numpy as np
import pytest

import nestegg
from nestegg.ir.expr import TensorExpr, reduce
from nestegg.ir.index import Axis
from nestegg.ir.loops import lower
from nestegg.ir.types import TensorType
from nestegg.report import Verification
from nestegg.report_html import MAX_DRAWN, Box, growth_line, render, svg
from nestegg.report_text import accounted, amount, computes, described, domain, left_open, size


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, text and addresses."""

    EMPTY = frozenset({"meta", "path", "rect", "polyline", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def compiled():
    def softened(x, w):
        return np.float32(0.5) * (x @ w) + x

    program = nestegg.optimize(softened, np.ones((4, 16), np.float32), np.ones((16, 16), np.float32))
    program.verify()
    return program


def test_a_kernel_in_one_line():
    x, w = TensorType((4, 6)), TensorType((6, 8))
    k = Axis("k", 6)
    product = TensorExpr.build(
        (x, w), (4, 8), lambda x, w: lambda i, j: reduce("sum", (k,), x[i, k] * w[k, j])
    )
    kernel = lower(product)
    assert computes(kernel) == "sum(x0 * x1)"
    assert domain(kernel) == "4x8 sum 6"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (2976, "2,976"),
        (999_999, "999,999"),
        (1_000_000, "1.0e6"),
        (9_990_000, "1.0e7"),
        (14 * 10**400, "1.4e401"),
    ],
)
def test_counts_of_programs_may_be_astronomic(n, text):
    assert amount(n) == text


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 5 << 20)] == ["0 B", "1023 B", "1.0 KiB", "5.0 MiB"]


def test_the_page_is_whole_and_stands_alone(compiled):
    found = described(compiled)
    page = Page(render(compiled, found))
    assert page.links == []
    assert page.tags.count("svg") == 3
    for kernel in found["kernels"]:
        assert kernel["schedule"] in page.text
        assert kernel["expression"] in page.text
    for word in ("Before and after", "Rules that fired", "largest relative error", "What was left", "Memory"):
        assert word in page.text


def test_every_figure_of_the_table_has_a_line(compiled):
    headings = [what for what, _ in accounted(described(compiled))]
    assert headings == [
        "e-graphs",
        "extraction",
        "graph rules",
        "loop rules",
        "memory",
        "schedules",
        "predicted",
        "compiled",
    ]


def test_what_was_left_names_the_limits_that_were_hit(compiled):
    found = described(compiled)
    found["graph"] = found["graph"] | {"stopped_by": "nodes"}
    found["extraction"] = found["extraction"] | {"optimal": False, "gap": 0.03}
    sentences = " ".join(left_open(found))
    assert "stopped by the limit on nodes" in sentences
    assert "3.00% cheaper" in sentences


def test_verification_fails_where_a_result_is_not_a_number():
    exact = [np.ones(3)]
    assert Verification.of([np.ones(3)], exact, exact).ok
    assert not Verification.of([np.array([1, np.nan, 1])], exact, exact).ok
    assert not Verification.of([np.array([1, 1.1, 1])], exact, exact).ok


def test_a_drawing_escapes_text_and_bends_long_edges():
    boxes = [Box("x<y", "f32[2]", leaf=True), Box("a", "", [0]), Box("b", "", [1]), Box("out", "", [0, 2])]
    drawing = svg(boxes)
    assert "x&lt;y" in drawing
    assert drawing.count("<rect") == 4
    assert (
        drawing.count("<path") == 3 + 3 + 2
    )  # three short edges; one that crosses two layers: three pieces, two bends
    Page(drawing)


def test_a_huge_drawing_is_cut_and_says_so():
    chain = [Box("n", "", [k - 1] if k else []) for k in range(MAX_DRAWN + 7)]
    assert "7 more are not drawn" in svg(chain)
    assert svg([]).startswith("<svg")


def test_growth_needs_two_points():
    assert growth_line([5]) == ""
    assert "polyline" in growth_line([5, 9])
