"""Keys that any reader splits alike, and how others become such keys."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit.errors import ConfigError
from shardkit.format.keys import MAX_EXT, MAX_KEY, check_ext, fit_key, fits, split_name, tar_name

ANY_KEY = st.text(min_size=1, max_size=120)


@given(ANY_KEY)
@settings(max_examples=300)
def test_any_key_is_made_to_fit_and_then_stays_as_it_is(key: str) -> None:
    fitted = fit_key(key)
    assert fits(fitted)
    assert fitted == fit_key(key) == fit_key(fitted)
    assert len(fitted.encode("ascii")) <= MAX_KEY


@given(st.lists(ANY_KEY, unique=True, max_size=40))
@settings(max_examples=100)
def test_different_keys_stay_different(keys: list[str]) -> None:
    assert len({fit_key(key) for key in keys}) == len(keys)


@given(ANY_KEY, st.sampled_from(["jpg", "seg.png", "x" * MAX_EXT]))
@settings(max_examples=100)
def test_a_fitted_key_and_an_ext_are_parted_again(key: str, ext: str) -> None:
    name = tar_name(fit_key(key), ext)
    assert len(name) <= 100
    assert split_name(name.decode()) == (fit_key(key), ext)


def test_rewritten_keys_are_readable_and_frozen() -> None:
    assert fit_key("000123") == "000123"
    assert fit_key("cat/000") == "cat_000-36130e4ff8b1f872"
    assert fit_key("a b.c") == f"a_b_c-{fit_key('a b.c')[-16:]}"
    assert fit_key("…").startswith("key-")
    assert fit_key("__meta__").startswith("meta-")
    assert len(fit_key("k" * 71)) == MAX_KEY


@pytest.mark.parametrize(
    "key", ["a.b", "a/b", "a\\b", "a b", "ä", "", "__x", "k" * 71, "a\nb", "a\x7f"]
)
def test_what_readers_split_otherwise_does_not_fit(key: str) -> None:
    assert not fits(key)


@pytest.mark.parametrize("ext", ["", ".", "a b", "a/b", "ä", "x" * 30, "a..b", ".jpg"])
def test_an_ext_that_names_cant_hold_is_refused_with_the_remedy(ext: str) -> None:
    with pytest.raises(ConfigError, match="--files COLUMN=EXT"):
        check_ext(ext)


def test_the_ext_begins_at_the_first_dot_after_the_last_slash_and_is_lower_case() -> None:
    assert split_name("d.x/a.Seg.PNG") == ("d.x/a", "seg.png")
    assert split_name("d/none") == ("d/none", "")
