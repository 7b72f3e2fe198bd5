"""Parts of the records that share no prompt."""

import hashlib

from tasks.parts import canonical, half_of, part_of

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello."}


def test_a_plain_prompt_is_the_same_prompt_as_its_only_message() -> None:
    assert canonical("Hi ") == canonical([USER])
    assert canonical([USER]) != canonical([{"role": "system", "content": "Hi"}])
    assert canonical([USER, GOOD]) != canonical([USER])


def test_a_prompt_is_in_the_part_that_its_hash_says() -> None:
    digest = hashlib.sha256(b"mine\nuser\x1fHi").hexdigest()
    assert part_of("Hi ", 5, "mine") == part_of([USER], 5, "mine") == int(digest[:16], 16) % 5


def test_parts_are_about_equal_and_those_of_another_salt_independent() -> None:
    prompts = [f"prompt {number}" for number in range(4000)]
    parts = [part_of(prompt, 4, "one") for prompt in prompts]
    assert all(900 < parts.count(part) < 1100 for part in range(4))
    both = [(half_of(prompt), part) for prompt, part in zip(prompts, parts, strict=True)]
    assert all(420 < both.count((half, part)) < 580 for half in ("first", "second") for part in range(4))
