"""What a prompt is understood to ask for."""

import pytest

from diffkit_image import prompts
from diffkit_image.captions import spelled

VOCABULARY = ["blue", "box", "cat", "cherry", "circle", "closed", "eye", "face", "kite", "smiling", "sun", "wave", "5"]
NAMES = {
    "cat-face": ["smiling cat face with heart-shaped eyes", "cat face with closed eyes"],
    "animal-mammal": ["cat", "dog", "cat face"],
    "face-smiling": ["smiling face", "grinning face", "smiling face with closed eyes"],
    "geometric": ["blue circle", "red circle", "large blue diamond"],
    "other": [],
}


def asked(prompt, vocabulary=VOCABULARY, names=NAMES):
    return prompts.read(prompt, vocabulary, names)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a smiling cat", ("smiling", "cat")),
        ("Two Smiles: CATS!", ("smiling", "cat")),
        ("cherries in boxes", ("cherry", "box")),
        ("sunny, with waving", ("sun", "wave")),
        ("a picture of the number 5", ("5",)),
        ("c\u00e0t's eye", ("cat", "eye")),
        ("kites", ("kite",)),
        ("kitty", ()),
        ("cat cat cat", ("cat",)),
        ("", ()),
    ],
)
def test_words_are_known_in_all_their_forms(prompt, words):
    assert asked(prompt).words == words


def test_words_that_are_not_known_are_told_with_the_nearest_that_is():
    assert asked("an emoji of a smilling walrus").unknown == {"smilling": "smiling", "walrus": ""}


def test_a_word_that_is_known_as_it_is_goes_before_its_other_forms():
    assert asked("waves waving", ["wave", "waving"]).words == ("wave", "waving")


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("smiling cat", "cat-face"),
        ("cat", "animal-mammal"),
        ("a cat face", "animal-mammal"),
        ("cat-face", "cat-face"),
        ("smiling face", "face-smiling"),
        ("a blue circle", "geometric"),
        ("something geometric", "geometric"),
        ("closed eyes", None),
        ("cat in a spaceship over the moon", None),
        ("spaceship", None),
        ("", None),
    ],
)
def test_the_category_is_that_of_the_name_that_fits_best_or_open(prompt, category):
    assert asked(prompt).category == category


def test_every_name_finds_its_own_category():
    vocabulary = sorted({word for some in NAMES.values() for name in some for word in spelled(name)})
    for category, some in NAMES.items():
        assert [asked(name, vocabulary).category for name in some] == [category] * len(some)


def test_without_names_a_category_is_what_is_called_so():
    names = {"wild cats": [], "cats": [], "office_chair": []}
    assert asked("a cat", [], names).category == "cats"
    assert asked("some wild cats", [], names).category == "wild cats"
    assert asked("office chairs", [], names).category == "office_chair"
    assert asked("a chair", [], names).category is None


def test_a_very_long_prompt_is_read_in_part():
    assert asked("cat " * 100_000 + "circle").words == ("cat",)


@pytest.mark.parametrize(
    ("forms", "common"),
    [("smile smiles smiling smiled", "smil"), ("box boxes", "box"), ("runner running", "run"), ("kiss", "kiss")],
)
def test_forms_of_a_word_have_one_stem(forms, common):
    assert {prompts.stem(form) for form in forms.split()} == {common}
