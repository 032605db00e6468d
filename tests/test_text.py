"""Names and errors on one line, and suggestions."""

from captioner.text import did_you_mean, first_line, printable


def test_control_characters_and_surrogates_are_escaped():
    assert printable("a\nb\x1b[31m\u2028\udce9 é") == "a\\nb\\x1b[31m\\u2028\\udce9 é"


def test_the_first_line_of_an_error_or_its_type():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_similar_words_are_suggested():
    assert did_you_mean("captoin", ["caption", "inspect"]) == "; did you mean caption?"
    assert did_you_mean("vit_a", ["vit_b", "vit_c"], most=2) in (
        "; did you mean vit_b or vit_c?",
        "; did you mean vit_c or vit_b?",
    )
    assert did_you_mean("zebra", ["caption"]) == ""
