"""Conversations, comparisons, questions and prompts: every format, every error, and round trips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data.formats import conversations as conversing
from tercet.data.formats import preferences as comparing
from tercet.data.formats import prompts as asking
from tercet.data.readers import BadRows
from tercet.data.types import Comparison, Message, Question
from tercet.errors import DataError

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = (Message("user", "Hi"), Message("assistant", "Hello."))


def _write(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def _message(parse, row) -> str:
    with pytest.raises(DataError) as caught:
        parse(row, "data/a.jsonl:7")
    assert str(caught.value).startswith("data/a.jsonl:7: ")
    return str(caught.value)


# ---- conversations

CONVERSATIONS = [
    ({"messages": [HI, HELLO]}, PAIR),
    ({"messages": [SYSTEM, HI, HELLO], "prompt": "ignored"}, (Message("system", "Be brief."), *PAIR)),
    ({"messages": [HI, HELLO, HI, HELLO]}, PAIR * 2),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                HELLO,
            ]
        },
        PAIR,
    ),
    ({"messages": [HI, {"role": "assistant", "content": ""}]}, (PAIR[0], Message("assistant", ""))),
    ({"instruction": "Hi", "output": "Hello."}, PAIR),
    ({"instruction": "Hi", "input": "", "output": "Hello."}, PAIR),
    (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        (Message("user", "Add.\n\n1 1"), Message("assistant", "2")),
    ),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, PAIR),
    (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "Hi"},
                {"from": "assistant", "value": "Hello."},
            ]
        },
        (Message("system", "Be brief."), *PAIR),
    ),
    ({"prompt": "Hi", "completion": "Hello."}, PAIR),
    ({"prompt": "Hi", "response": "Hello."}, PAIR),
    ({"prompt": [SYSTEM, HI], "response": "Hello."}, (Message("system", "Be brief."), *PAIR)),
]


@pytest.mark.parametrize(("row", "expected"), CONVERSATIONS)
def test_each_conversation_format(row, expected):
    assert conversing.parse_conversation(row, "a:1") == expected


BAD_CONVERSATIONS = [
    ({}, "no known format"),
    ({"text": "x"}, "found text"),
    ({"messages": "Hi"}, "found a string"),
    ({"messages": []}, "an empty list"),
    ({"messages": ["Hi"]}, "message 1: wanted an object"),
    ({"messages": [{"content": "Hi"}]}, '"role" must be a string, found no such key'),
    ({"messages": [{"role": "user"}, HELLO]}, '"content" must be a string, found no such key'),
    ({"messages": [{"role": "user", "content": None}, HELLO]}, "found null"),
    ({"messages": [HI, HELLO, {"role": "tool", "content": "4"}]}, 'message 3: unknown role "tool"'),
    ({"messages": [{"role": "function", "content": "4"}]}, "tool calls are not supported"),
    ({"messages": [HI, {**HELLO, "tool_calls": [{"id": "1"}]}]}, "tool call"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, HELLO]}, "found image_url"),
    ({"messages": [{"role": "user", "content": ["Hi"]}, HELLO]}, "found a string"),
    ({"messages": [HI]}, "no assistant turn"),
    ({"messages": [SYSTEM]}, "no assistant turn"),
    ({"messages": [HELLO, HI]}, "message 1: found the role assistant, wanted user"),
    ({"messages": [HI, HELLO, SYSTEM, HI, HELLO]}, "message 3: found the role system"),
    ({"messages": [SYSTEM, SYSTEM, HI, HELLO]}, "message 2: found the role system"),
    ({"messages": [HI, HI, HELLO]}, "message 2: found the role user, wanted assistant"),
    ({"messages": [HI, HELLO, HELLO]}, "message 3: found the role assistant, wanted user"),
    ({"messages": [HI, HELLO, HI]}, "the last turn is the user's"),
    (
        {"conversations": [{"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Hi"}]},
        "message 1: found the role",
    ),
    ({"conversations": [{"from": "bing", "value": "Hi"}]}, 'unknown speaker "bing"'),
    ({"conversations": [{"from": "human", "value": 3}]}, '"value" must be a string, found a number'),
    ({"instruction": "Hi"}, '"output" must be a string, found no such key'),
    ({"instruction": ["Hi"], "output": "x"}, '"instruction" must be a string, found a list'),
    ({"prompt": "Hi"}, '"response" must be a string'),
    ({"prompt": 3, "response": "x"}, '"prompt" must be a string or a list'),
    ({"prompt": "Hi", "completion": True}, '"completion" must be a string, found true or false'),
]


@pytest.mark.parametrize(("row", "words"), BAD_CONVERSATIONS)
def test_each_wrong_conversation_is_named(row, words):
    assert words in _message(conversing.parse_conversation, row)


def test_conversations_mix_formats_and_skip_bad_rows(tmp_path):
    path = _write(
        tmp_path / "a.jsonl", {"messages": [HI, HELLO]}, {"messages": [HI]}, {"prompt": "Hi", "response": "Hello."}
    )
    bad = BadRows(skip=True)
    assert list(conversing.read_conversations([path], bad)) == [(f"{path}:1", PAIR), (f"{path}:3", PAIR)]
    assert bad.count == 1
    assert bad.messages[0].startswith(f"{path}:2: no assistant turn")
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        list(conversing.read_conversations([path], BadRows()))


def test_files_without_rows_are_an_error_that_names_them(tmp_path):
    paths = [_write(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for read in (conversing.read_conversations, comparing.read_comparisons, asking.read_questions, asking.read_prompts):
        with pytest.raises(DataError, match=r"a\.jsonl, .*b\.jsonl: empty"):
            list(read(paths, BadRows()))


texts = st.text(max_size=20)
prompt_turns = st.builds(
    lambda system, first, more: (
        *(Message("system", text) for text in system),
        Message("user", first),
        *(Message(role, text) for pair in more for role, text in zip(("assistant", "user"), pair)),
    ),
    st.lists(texts, max_size=1),
    texts,
    st.lists(st.tuples(texts, texts), max_size=3),
)


def _through_json(row):
    return json.loads(json.dumps(row))


@settings(max_examples=60, deadline=None)
@given(prompt_turns, texts)
def test_conversations_round_trip(prompt, answer):
    conversation = (*prompt, Message("assistant", answer))
    assert conversing.parse_conversation(_through_json(conversing.to_row(conversation)), "a:1") == conversation
    messages = conversing.to_messages(prompt)
    assert (
        conversing.parse_messages(messages, "a:1", need_answer=False)
        == prompt
        == conversing.parse_prompt(messages, "a:1")
    )
    assert asking.parse_prompt_row(conversing.to_row(conversation), "a:1") == prompt
    both = {
        "chosen": conversing.to_messages(conversation),
        "rejected": [*messages, {"role": "assistant", "content": "no"}],
    }
    assert comparing.parse_comparison(both, "a:1") == Comparison(prompt, (answer, "no"), (1, 2))


# ---- comparisons

ASK = (Message("user", "Hi"),)
DIALOGUE = (*PAIR, Message("user", "And?"))
COMPARISONS = [
    ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, Comparison(ASK, ("a", "b"), (1, 2))),
    ({"prompt": [HI], "chosen": "a", "rejected": "", "labeler": "Kim"}, Comparison(ASK, ("a", ""), (1, 2), "Kim")),
    (
        {"chosen": [HI, HELLO], "rejected": [HI, {**HELLO, "content": "No."}]},
        Comparison(ASK, ("Hello.", "No."), (1, 2)),
    ),
    ({"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, HELLO]}, Comparison(ASK, ("Hello.", "Hello."), (1, 2))),
    ({"prompt": [HI], "chosen": [HELLO], "rejected": [HELLO]}, Comparison(ASK, ("Hello.", "Hello."), (1, 2))),
    (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "labeler": 4, "time": "2024-05-01T10:00"},
        Comparison(ASK, ("a", "b", "c"), (2, 1, 2), "4", "2024-05-01T10:00"),
    ),
    (
        {"prompt": "Hi", "responses": ["a", "b", "c", "d"], "scores": [4, 4.5, -1, 4]},
        Comparison(ASK, ("a", "b", "c", "d"), (2, 1, 3, 2), scores=(4.0, 4.5, -1.0, 4.0)),
    ),
    (
        {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 1], "scores": [0.1, 0.2, 0.1]},
        Comparison(ASK, ("a", "b", "c"), (2, 1, 1), scores=(0.1, 0.2, 0.1)),
    ),
    (
        {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 2},
        Comparison(ASK, ("a", "b"), (1, 2), scores=(2.0, 0.0)),
    ),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": None}, Comparison(ASK, ("a", "b"), (1, 2))),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        Comparison(ASK, ("Hello.", ""), (1, 2)),
    ),
    (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: One\n\nTwo: Human: 3",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: Nothing.\n",
        },
        Comparison(DIALOGUE, ("One\n\nTwo: Human: 3", "Nothing."), (1, 2)),
    ),
]


@pytest.mark.parametrize(("row", "expected"), COMPARISONS)
def test_each_comparison_format(row, expected):
    assert comparing.parse_comparison(row, "a:1") == expected


RANKED = {"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 2]}
BAD_COMPARISONS = [
    ({"prompt": "Hi", "chosen": "a"}, "found chosen, prompt"),
    ({**RANKED, "responses": ["a"]}, "found 1 in"),
    ({**RANKED, "responses": "ab"}, "list of strings"),
    ({**RANKED, "responses": ["a", 2]}, "list of strings"),
    ({**RANKED, "ranks": [1, 2, 3]}, "found 2 responses but 3 ranks"),
    ({**RANKED, "ranks": [1, 2.0]}, "found the rank 2.0"),
    ({**RANKED, "ranks": [True, 2]}, "found the rank True"),
    ({**RANKED, "ranks": [0, 1]}, "found the rank 0"),
    ({**RANKED, "ranks": ["1", "2"]}, "found the rank '1'"),
    ({**RANKED, "ranks": None}, '"ranks" must be a list'),
    ({**RANKED, "scores": 3}, '"scores" must be a list of numbers, found a number'),
    ({**RANKED, "scores": [3]}, "found 2 responses but 1 scores"),
    ({**RANKED, "scores": [3, "2"]}, """found '2' in "scores"; wanted a finite number"""),
    ({**RANKED, "scores": [True, 0]}, 'found True in "scores"'),
    ({**RANKED, "scores": [float("inf"), 0]}, 'found inf in "scores"'),
    ({**RANKED, "scores": [float("nan"), 0]}, 'found nan in "scores"'),
    ({**RANKED, "scores": [1, 2]}, "rank 1 has the score 1 and rank 2 the score 2; wanted the higher score"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [], "scores": [1, 2]}, "found 2 responses but 0 ranks"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": -1}, '"margin" is -1; wanted 0 or more'),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": "big"}, """found 'big' in "margin"; wanted"""),
    ({"responses": ["a", "b"], "ranks": [1, 2]}, '"prompt" must be a string or a list of messages, found null'),
    ({**RANKED, "prompt": [HI, HELLO]}, "must end with a user turn"),
    ({**RANKED, "labeler": []}, '"labeler" must be a string'),
    ({"prompt": "Hi", "chosen": "a", "rejected": 3}, '"rejected" must be a string'),
    ({"prompt": "Hi", "chosen": "a", "rejected": [HELLO]}, '"rejected" must be a string, found a list'),
    ({"chosen": [HI, HELLO], "rejected": [{**HI, "content": "Ho"}, HELLO]}, "different prompts"),
    ({"chosen": [HI, HELLO], "rejected": [HI]}, "no assistant turn"),
    ({"chosen": [HELLO], "rejected": [HELLO]}, "found the role assistant"),
    ({"prompt": "Ho", "chosen": [HI, HELLO], "rejected": [HI, HELLO]}, 'not those of "prompt"'),
    ({"chosen": "a", "rejected": "b"}, 'neither a "prompt" key nor a transcript'),
    ({"chosen": "Well\n\nHuman: Hi\n\nAssistant: a", "rejected": "b"}, 'neither a "prompt" key nor a transcript'),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: a"}, "different prompts"),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: Ho", "rejected": "\n\nHuman: Hi\n\nAssistant: a"},
        "the last turn",
    ),
    ({"chosen": "\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: a", "rejected": "b"}, "message 2: found the role user"),
]


@pytest.mark.parametrize(("row", "words"), BAD_COMPARISONS)
def test_each_wrong_comparison_is_named(row, words):
    assert words in _message(comparing.parse_comparison, row)


def test_comparisons_read_files(tmp_path):
    path = _write(tmp_path / "a.jsonl", RANKED, {**RANKED, "ranks": [1]})
    bad = BadRows(skip=True)
    assert list(comparing.read_comparisons([path], bad)) == [(f"{path}:1", Comparison(ASK, ("a", "b"), (1, 2)))]
    assert bad.count == 1


@settings(max_examples=60, deadline=None)
@given(
    prompt_turns, st.lists(st.tuples(texts, st.integers(1, 9)), min_size=2, max_size=6), texts, texts, st.floats(-9, 9)
)
def test_comparisons_round_trip(prompt, answers, labeler, time, worth):
    responses, ranks = zip(*answers)
    scores = tuple(worth / rank for rank in ranks) if worth > 0 else ()
    comparison = Comparison(prompt, responses, ranks, labeler, time, scores)
    assert comparing.parse_comparison(_through_json(comparing.to_row(comparison)), "a:1") == comparison


# ---- tasks and prompts


def test_task_fields_and_defaults(tmp_path):
    folder = tmp_path / "sets"
    folder.mkdir()
    path = _write(
        folder / "sums.jsonl",
        {"prompt": "1+1", "answer": "2"},
        {"prompt": [SYSTEM, HI], "answers": ["5", "five"], "ability": "x", "id": 9, "held_out": "template"},
    )
    first, second = (task for _, task in asking.read_questions([path], BadRows()))
    assert first == Question((Message("user", "1+1"),), ("2",), "sums", "sets/sums.jsonl:1")
    assert second == Question((Message("system", "Be brief."), *ASK), ("5", "five"), "x", "9", "template")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "2"}, '"prompt" must be a string or a list of messages, found null'),
        ({"prompt": "Hi"}, "both or neither"),
        ({"prompt": "Hi", "answer": "2", "answers": ["2"]}, "both or neither"),
        ({"prompt": "Hi", "answer": 2}, '"answer" must be a string, found a number'),
        ({"prompt": "Hi", "answers": []}, "found none"),
        ({"prompt": "Hi", "answers": "2"}, "found a string"),
        ({"prompt": "Hi", "answers": ["2", " "]}, "found the answer ' '"),
        ({"prompt": "Hi", "answers": [2]}, "found the answer 2"),
        ({"prompt": "Hi", "answer": "2", "ability": 3}, '"ability" must be a string'),
    ],
)
def test_each_wrong_task_is_named(row, words):
    assert words in _message(asking.parse_question, row)


@settings(max_examples=60, deadline=None)
@given(
    prompt_turns,
    st.lists(texts.filter(lambda text: text.strip()), min_size=1, max_size=3),
    texts,
    texts,
    st.sampled_from(["", "entity"]),
)
def test_tasks_round_trip(prompt, answers, ability, id, held_out):
    task = Question(prompt, tuple(answers), ability, id, held_out)
    assert asking.parse_question(_through_json(asking.to_row(task)), "a:1") == task


def test_prompts_of_strings_and_messages(tmp_path):
    path = _write(
        tmp_path / "a.jsonl",
        {"prompt": "Hi"},
        {"messages": [HI, HELLO]},
        {"messages": [HI]},
        {"prompt": [HI, HELLO, HI]},
    )
    assert [prompt for _, prompt, _ in asking.read_prompts([path], BadRows())] == [ASK, ASK, ASK, (*PAIR, *ASK)]


@pytest.mark.parametrize(
    "row", [{}, {"prompt": []}, {"messages": [SYSTEM]}, {"messages": [SYSTEM, HELLO]}, {"prompt": [HELLO]}]
)
def test_each_wrong_prompt_is_named(row):
    _message(asking.parse_prompt_row, row)
