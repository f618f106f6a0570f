"""What the tests of engines share: prompts of various lengths."""

import pytest

from kr1_utils import protocol
from kr1_utils.profiles import PROFILES


@pytest.fixture(scope="module")
def prompts(tokenizer, chat, questions):
    """First turns and, longer, second turns: 16 in all."""
    system_prompt = PROFILES["tiny"].system_prompt
    made = []
    for number, q in enumerate(questions["test"][:8] + questions["test_single"][:8]):
        messages = protocol.messages(q["question"], system_prompt)
        ids = protocol.prompt_ids(tokenizer, messages)
        if number % 2:
            title = q["supporting_titles"][0]
            turn = protocol.render_turn("I need to read about it.", "search", title)
            found = [{"title": title, "text": "Some text. " * number}]
            ids += protocol.encode(tokenizer, turn)
            ids += [chat.end_of_turn]
            ids += protocol.observation_ids(tokenizer, chat, found, 128)
        made.append(ids)
    return made
