"""Small data files, and the check of a message, for the tests of the data sources."""

import json

import pytest

from lori_pl.errors import LoriError

JANET = {
    "question": "Janet has 16 eggs.  What does she earn?",
    "answer": "She sells 16 - 7 = <<16-7=9>>9 eggs.\nShe earns 9 * 2,000 = $<<9*2000=18000>>18,000.\n#### 18,000",
}
BARE = {"question": "How old is Ann?", "answer": "Ann is 7.\nShe said so.\n#### 7"}


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def write_list(file, rows):
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return file


def error(action, *words):
    """Runs `action`, which must raise a LoriError of one line that has all the words."""
    with pytest.raises(LoriError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message
