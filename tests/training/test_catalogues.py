"""Catalogues: which entries become pairs, how they are cleaned, and that the split keeps sentences apart."""

import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from eddy.training.catalogues import Pair, clean, fold, load_pairs, load_sentences, read_catalogue, split_by_key
from eddy.training.errors import DataError
from eddy.training.packages import PACKAGES, Package

CATALOGUE = r"""
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=n > 1;\n"

msgid "The river"
msgstr "La rivière"

#, fuzzy
msgid "Old water"
msgstr "Vieille eau"

msgid "Nobody wrote this"
msgstr ""

msgctxt "verb"
msgid ""
"Turn   the\n"
"page…"
msgstr ""
"Tournez "
"la page…"

msgid "%(count)d river of %(land)s"
msgid_plural "%(count)d rivers of %(land)s"
msgstr[0] "%(land)s : %(count)d rivière"
msgstr[1] "%(land)s : %(count)d rivières"

#~ msgid "Gone"
#~ msgstr "Parti"
"""


def write_catalogue(path: Path, entries: list[tuple[str, str]]) -> str:
    """A catalogue of plain entries; returns its name as a source."""
    text = "".join(f'msgid "{source}"\nmsgstr "{target}"\n\n' for source, target in entries)
    path.write_text(f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n{text}', encoding="utf-8")
    return str(path)


def many(count: int) -> list[tuple[str, str]]:
    """Entries enough for three parts."""
    names = [f"{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}" for i in range(count)]
    return [(f"River {name}", f"Rivière {name}") for name in names]


def test_entries_become_pairs() -> None:
    """Lines are joined and white space made even; fuzzy, obsolete and empty entries are left out; plurals give two."""
    assert read_catalogue(CATALOGUE, "river.po") == [
        Pair("The river", "La rivière"),
        Pair("Turn the page...", "Tournez la page..."),
        Pair("{1} river of {2}", "{2} : {1} rivière"),
        Pair("{1} rivers of {2}", "{2} : {1} rivières"),
    ]
    with pytest.raises(DataError, match=r"broken.po: not readable as a catalogue"):
        read_catalogue('msgid "one\nmsgid two\n', "broken.po")


def test_text_is_cleaned() -> None:
    """No-break spaces, typographic apostrophes and decomposed accents have one form."""
    assert clean(" l\u2019e\u0301te\u0301\u00a0:\n  fin\u2026 ") == "l'été : fin..."


@pytest.mark.parametrize(
    "entry",
    [
        ("See <b>here</b>", "Voir <b>ici</b>"),
        ("{a} {b} {c} rivers, many of them", "{a} {b} {c} rivières, beaucoup"),
        ("Water of {a} here", "Eau de {b} ici"),
        ("======= ab", "======= ab c"),
        ("Left as it is", "Left as it is"),
        ("word " * 30, "mot " * 30),
    ],
)
def test_what_says_more_of_a_program_is_left_out(entry: tuple[str, str], tmp_path: Path) -> None:
    """Markup, many or other placeholders, mostly no letters, not translated, too long."""
    source = write_catalogue(tmp_path / "a.po", [*many(60), entry])
    parts = load_pairs([source], max_characters=100)
    pairs = [*parts.train, *parts.validation, *parts.test]
    assert len(pairs) == 60
    assert all(pair.source.startswith("River ") for pair in pairs)


def test_single_words_may_stay_as_they_are(tmp_path: Path) -> None:
    """A name is translated by itself."""
    parts = load_pairs([write_catalogue(tmp_path / "a.po", [*many(60), ("Kazakh", "Kazakh")])], max_characters=100)
    assert Pair("Kazakh", "Kazakh") in {*parts.train, *parts.validation, *parts.test}


def test_the_split_depends_on_the_sentence_alone(tmp_path: Path) -> None:
    """Other entries move nothing; case and punctuation never separate; of two translations the first stays."""
    entries = many(100)
    small = load_pairs([write_catalogue(tmp_path / "a.po", entries[:60])], max_characters=100)
    shouted = [(source.upper() + "!", target) for source, target in entries]
    again = [(source, "Autre fleuve") for source, _ in entries]
    large = load_pairs([write_catalogue(tmp_path / "b.po", entries + shouted + again)], max_characters=100)
    assert len(large.train) + len(large.validation) + len(large.test) == 200
    for before, after in ((small.train, large.train), (small.validation, large.validation), (small.test, large.test)):
        assert set(before) <= set(after)
        sentences = {fold(pair.source) for pair in after}
        assert len(after) == 2 * len(sentences)
        assert all(pair.target.startswith("Rivière") for pair in after)
    assert len(small.train) > len(small.test)


def test_sentences_are_the_translations_each_once(tmp_path: Path) -> None:
    """Two messages with one translation give one sentence."""
    entries = [*many(60), ("Stream aa", "Rivière ak")]
    parts = load_sentences([write_catalogue(tmp_path / "a.po", entries)], max_characters=100)
    sentences = [*parts.train, *parts.validation, *parts.test]
    assert sorted(sentences) == sorted({target for _, target in entries})


def test_too_few_sentences_are_refused() -> None:
    """Every part needs some."""
    with pytest.raises(DataError, match=r"few.po: .* expected some in each"):
        split_by_key(["one"], lambda sentence: sentence, "few.po")


def test_catalogues_are_read_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern means all catalogues of a language, in order; a file that is none is named."""
    monkeypatch.setenv("EDDY_DATA", str(tmp_path))
    one, two = many(60)[:30], many(60)[30:]
    with zipfile.ZipFile(tmp_path / "creek.whl", "w") as wheel:
        for name, entries in (("a", one), ("b", two)):
            write_catalogue(tmp_path / "draft.po", entries)
            wheel.write(tmp_path / "draft.po", f"creek/{name}/fr/LC_MESSAGES/django.po")
        wheel.writestr("creek/bad.po", b"\xff")
    digest = sha256((tmp_path / "creek.whl").read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, "creek", Package("creek", "creek==1.0", "creek.whl", digest, "CC0-1.0", "", ""))
    parts = load_pairs(["wheel:creek:*/fr/LC_MESSAGES/*.po"], max_characters=100)
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 60
    with pytest.raises(DataError, match=r"wheel:creek:creek/bad.po: not readable as UTF-8"):
        load_pairs(["wheel:creek:creek/bad.po"], max_characters=100)
    with pytest.raises(DataError, match="not readable"):
        load_pairs([str(tmp_path / "none.po")], max_characters=100)
