"""The page that shows where chunks begin."""

from data.tokenizer import ByteTokenizer
from eval.chunk_cuts import Cut, Rate, mean_length, pieces, rates, some_of_each
from eval.chunk_page import rate_table, render_cuts

TOKENIZER = ByteTokenizer()
TOKENS = TOKENIZER.encode("a1 <b><eos>")  # a, 1, space, <, b, >, end
CUTS = [Cut("one", TOKENS, [2, 1, 0, 1, 0, 0, 2]), Cut("two", [97, 32, 57], [2, 0, 1])]


def test_rates_by_hand() -> None:
    """First bytes are left out; 1, < and the end, then 9."""
    assert rates(CUTS) == [
        Rate("any", 8, 4),
        Rate("space", 2, 0),
        Rate("digit", 2, 2),
        Rate("letter", 1, 0),
        Rate("other byte", 2, 1),
        Rate("special token", 1, 1),
        Rate("first after a space", 2, 2),
    ]
    assert [rate.begins for rate in rates(CUTS, level=2)] == [1, 0, 0, 0, 0, 1, 0]
    assert mean_length(CUTS) == 10 / 6
    assert mean_length(CUTS, level=2) == 10 / 3
    shown = [[entry.text for entry in row] for row in rate_table(CUTS, 1).rows]
    assert shown[2] == ["digit", "2", "100.0", "50.0"]
    assert rates([])[0] == Rate("any", 0, 0)


def test_documents_are_shown_whole_and_escaped() -> None:
    assert pieces(CUTS[0], TOKENIZER) == [("a", 2), ("1 ", 1), ("<b>", 1), ("<eos>", 2)]
    page = render_cuts(CUTS, CUTS[:1], TOKENIZER, {"Run": "<x>"}, levels=2)
    marked = '<span class="outer">a</span><span>1 </span><span>&lt;b&gt;</span>'
    assert marked in page
    assert "<b>" not in page and "<x>" not in page
    assert "2 held-out documents of 10 bytes; bytes of a chunk: 1.67, 3.33." in page
    assert "Level 2: 3.33 bytes a chunk" in page


def test_sources_take_turns() -> None:
    cuts = [Cut(source, [place], [1]) for source in "aab" for place in range(2)]
    assert [cut.source for cut in some_of_each(cuts, 4)] == ["a", "b", "a", "b"]
