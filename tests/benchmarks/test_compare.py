from benchmarks.compare import compare_captions, compare_maps

RECORD = {"path": "a.jpg", "caption": "a dog", "log_prob": -5.0, "confidence": 0.5, "captions": [], "notes": []}


def differences(**changes):
    found = compare_captions([RECORD], [RECORD | changes])
    return len(found["differences"]), found["near ties"]


def test_equal_records_and_rounding_pass():
    assert differences() == (0, 0)
    assert differences(log_prob=-5.0009, confidence=0.4) == (0, 0)


def test_other_texts_pass_only_as_near_ties():
    assert differences(caption="a cat", log_prob=-5.00005) == (0, 1)
    assert differences(caption="a cat", log_prob=-5.0002) == (1, 0)


def test_other_numbers_notes_and_errors_are_differences():
    assert differences(log_prob=-5.01) == (1, 0)
    assert differences(notes=["truncated"]) == (1, 0)
    error = {"path": "a.jpg", "error": {"code": "empty", "message": ""}}
    assert len(compare_captions([RECORD], [error])["differences"]) == 1
    assert not compare_captions([error], [error])["differences"]


def test_maps_are_compared_patch_by_patch():
    maps = {"a.jpg": [[[0.1, 0.2]]]}
    assert not compare_maps(maps, {"a.jpg": [[[0.1, 0.20001]]]})["differences"]
    assert compare_maps(maps, {"a.jpg": [[[0.1, 0.3]]]})["differences"] == ["a.jpg"]
    assert compare_maps(maps, {"a.jpg": [[[0.1]]]})["differences"] == ["a.jpg"]
    assert compare_maps(maps, {})["differences"] == ["a.jpg"]
