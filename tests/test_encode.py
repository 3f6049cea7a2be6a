"""Where text becomes tokens and tokens become text: ends of prompts, turns of chats, special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import processors

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Message, Prompt
from relgrad.networks.causal import tiny
from relgrad.networks.causal.encode import Encoder
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings
from relgrad.policies.autoregressive.build import compose
from relgrad.training.targets import example_of

EOS = 0
TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
HI: Message = {"role": "user", "content": "Hi"}
THINKS: Message = {"role": "assistant", "content": "Let me think: "}


def tokenizer(template: str | None = None, end_of_turn: str | None = "<end_of_turn>") -> Any:
    """One token per character, <eos>, and a special token that ends a turn."""
    made = tiny.build_tokenizer()
    if end_of_turn is not None:
        made.add_special_tokens({"additional_special_tokens": [end_of_turn]})
    made.chat_template = None if template is None else template.replace("END", end_of_turn or "")
    return made


def encoder(of: Any, **settings: Any) -> Encoder:
    """An encoder whose completions may end with <eos> or the last entry of the tokenizer."""
    chosen = Settings(model="m", **{"max_completion_length": 4, **settings})
    return Encoder(of, chosen, 512, len(of), end_ids=(EOS, len(of) - 1), end_id=EOS)


def text_of(of: Any, content: str | Sequence[Message], **settings: Any) -> str:
    """A prompt as the model reads it."""
    return str(of.decode(encoder(of, **settings).prompt(Prompt(content)).tolist()))


def target_of(of: Any, content: str | Sequence[Message], target: str, **settings: Any) -> str:
    """A target as the model learns it."""
    _, ids_T = encoder(of, **settings).example(Example(Prompt(content), target))
    return str(of.decode(ids_T.tolist()))


# ---------------------------------------------------------------------- what a tokenizer adds


@pytest.mark.parametrize(
    ("adds", "content", "expected"),
    [
        ("$A <eos>", "Hi: ", "Hi: "),
        ("<bos> $A <eos>", "Hi: ", "<bos>Hi: "),
        ("<bos> $A", "Hi: ", "<bos>Hi: "),
        ("<bos> $A", "<bos>Hi: ", "<bos>Hi: "),
        ("<bos> $A <eos>", "", "<bos>"),
        ("$A <bos> <eos>", "aaa", "aaa"),
        ("$A", "<eos>Hi<eos>", "<eos>Hi<eos>"),
    ],
)
def test_a_text_prompt_has_what_a_tokenizer_puts_before_it_once_and_nothing_after_it(
    adds: str, content: str, expected: str
):
    of = tokenizer(end_of_turn="<bos>")
    of._tokenizer.post_processor = processors.TemplateProcessing(
        single=adds, special_tokens=[("<eos>", EOS), ("<bos>", len(of) - 1)]
    )
    assert text_of(of, content) == expected
    prompt_P, target_T = encoder(of).example(Example(Prompt(content), "a"))
    assert of.decode(prompt_P.tolist()) == expected
    assert of.decode(target_T.tolist()) == "a<eos>"


def test_the_template_alone_says_where_a_chat_has_special_tokens():
    of = tokenizer("<bos>" + TURNS, end_of_turn="<bos>")
    of._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<eos>", EOS), ("<bos>", len(of) - 1)]
    )
    assert text_of(of, [HI]).count("<bos>") == 2  # before the chat, and after the turn of the user
    assert not text_of(of, [HI]).endswith("<eos>")


def test_a_tokenizer_that_changes_the_text_itself_is_refused():
    class Interleaving:
        chat_template = None

        def __call__(self, text: str, add_special_tokens: bool = True, **options: Any) -> Any:
            ids = [i for c in text for i in ([ord(c), EOS] if add_special_tokens else [ord(c)])]
            return type("Encoding", (), {"input_ids": ids})

        def __len__(self) -> int:
            return 200

    with pytest.raises(RelgradError, match=r"prompt 0: the tokenizer of 'm' puts special tokens inside of the text"):
        encoder(Interleaving()).prompt(Prompt("ab"))


def test_only_targets_have_to_leave_room_for_targets():
    """An example may be as long as the context, whatever a completion may be."""
    of = tokenizer()
    prompt_P, target_T = encoder(of, max_completion_length=512).example(Example(Prompt("ab"), "c"))
    assert (len(prompt_P), len(target_T)) == (2, 2)
    with pytest.raises(RelgradError, match=r"prompt 0 has 2 tokens and its target 513, the end of sequence included"):
        encoder(of).example(Example(Prompt("ab"), "c" * 512))


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        ("half \ud83d", "a", r"prompt 5 has half a character, '\\ud83d', after 5 others"),
        ([{"role": "user", "content": "half \ud83d"}], "a", r"prompt 5 has half a character"),
        ("whole", "half \ud83d", r"prompt 5: its target has half a character"),
    ],
)
def test_half_a_character_is_named_by_prompt(content: str | list[Message], target: str, message: str):
    """From a task of one's own, say: what comes from files is refused where it is read."""
    with pytest.raises(RelgradError, match=message):
        encoder(tokenizer(TURNS)).example(Example(Prompt(content, id=5), target))


# ---------------------------------------------------------------------- chats


def test_a_chat_that_ends_in_an_assistant_message_is_continued():
    of = tokenizer(TURNS)
    assert text_of(of, [HI, THINKS]) == "<user>Hi<end_of_turn>\n<assistant>Let me think: "
    assert text_of(of, [HI]) == "<user>Hi<end_of_turn>\n<assistant>"
    assert text_of(of, [HI, {"role": "assistant", "content": ""}]) == text_of(of, [HI])
    assert target_of(of, [HI, THINKS], "42") == "42<end_of_turn>"


def test_a_chat_has_one_system_message():
    """Its own before the recipe's; and a system message turns plain text into a chat, as the task's does."""
    of = tokenizer(TURNS)
    mine: Message = {"role": "system", "content": "A"}
    assert text_of(of, [mine, HI], system_prompt="B") == "<system>A<end_of_turn>\n<user>Hi<end_of_turn>\n<assistant>"
    assert text_of(of, [HI], system_prompt="B") == "<system>B<end_of_turn>\n<user>Hi<end_of_turn>\n<assistant>"
    assert text_of(of, "Hi", system_prompt="B") == text_of(of, [HI], system_prompt="B")
    developer: Message = {"role": "developer", "content": "C"}
    assert "<system>" not in text_of(of, [developer, HI], system_prompt="B")


def test_the_template_gets_what_the_recipe_says_beside_the_chat() -> None:
    """As Qwen3's does: without thinking, the assistant's turn begins with an empty thought, which is no target."""
    template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% if m['role'] == 'assistant' %}END{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% if not enable_thinking|default(true) %}<think></think>{% endif %}{% endif %}"
    )
    of = tokenizer(template)
    thoughtless = replace(encoder(of), template_arguments={"enable_thinking": False})
    assert str(of.decode(encoder(of).prompt(Prompt([HI])).tolist())).endswith("a:")
    assert str(of.decode(thoughtless.prompt(Prompt([HI])).tolist())).endswith("a:<think></think>")
    _, target_T = thoughtless.example(Example(Prompt([HI]), "Yo"))
    assert str(of.decode(target_T.tolist())) == "Yo<end_of_turn>"
    with pytest.raises(ValueError, match="add_generation_prompt is decided by where a chat ends"):
        Settings(model="m", chat_template_kwargs={"add_generation_prompt": True})


@pytest.mark.parametrize(
    ("template", "chat", "reason"),
    [
        (NO_SYSTEM + TURNS, [{"role": "system", "content": "be kind"}, HI], "System role not supported"),
        (ALTERNATING + TURNS, [HI, HI], "Conversation roles must alternate"),
        ("{{ messages[0].nothing.of }}", [HI], "has no attribute"),
        ("{{ messages[0]['content'][:3] }}", [HI, THINKS], "final message does not appear"),
    ],
)
def test_a_template_that_refuses_a_chat_is_an_error_that_names_the_prompt(
    template: str, chat: list[Message], reason: str
):
    with pytest.raises(
        RelgradError, match=rf"prompt 7: the chat template of model 'm' refuses it \(.*{reason}"
    ) as error:
        encoder(tokenizer(template)).prompt(Prompt(chat, id=7))
    assert ", ".join(message["role"] for message in chat) in str(error.value)


@pytest.mark.parametrize(
    ("template", "target", "expected"),
    [
        (TURNS, "Ho", "Ho<end_of_turn>"),
        (TURNS, "Ho<end_of_turn>", "Ho<end_of_turn>"),
        (TURNS.replace("END", " <eos>"), "Ho", "Ho <eos>"),
        (TURNS.replace("END", ""), "Ho", "Ho<eos>"),
    ],
)
def test_a_target_ends_as_the_template_ends_a_turn(template: str, target: str, expected: str):
    """Up to the id that ends a completion. Where the template has none, the end of sequence stands for it."""
    of = tokenizer(template)
    assert target_of(of, [HI], target) == expected
    assert target_of(of, "Hi", target, chat=True) == expected
    assert target_of(of, "Hi", "Ho") == "Ho<eos>"


def test_a_template_without_the_assistants_words_has_no_targets():
    of = tokenizer("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}")
    with pytest.raises(RelgradError, match="leaves out what the assistant says"):
        target_of(of, [HI], "Ho")


def test_a_completion_written_as_a_chat_is_a_target():
    """As TRL's prompt-completion datasets have it; both kinds of rows."""
    rows = [Prompt([HI], {"completion": [{"role": "assistant", "content": "Ho"}]}), Prompt("Hi", {"completion": "Ho"})]
    assert [example_of(row, "completion", "s").target for row in rows] == ["Ho", "Ho"]


@pytest.mark.parametrize("value", [7, None, [], [HI], [THINKS, THINKS], [{"role": "assistant"}], {"role": "assistant"}])
def test_what_is_no_target_is_shown(value: Any):
    with pytest.raises(
        RelgradError, match=r"prompt 3: column 'completion' holds .*; a target is text, or a list of one"
    ):
        example_of(Prompt("Hi", {"completion": value}, 3), "completion", "sft.completion_column")


# ---------------------------------------------------------------------- completions as text


def writes_special_tokens(engine: str, **settings: Any) -> AutoregressivePolicy:
    """Of random weights; a third of its vocabulary are special tokens."""
    of = tiny.build_tokenizer()
    of.add_special_tokens({"additional_special_tokens": [f"<think{number}>" for number in range(len(of) // 2)]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny.build_model(32, 1)
        model.resize_token_embeddings(len(of), mean_resizing=False)
    return compose(model, of, Settings(model="tiny:32x1", max_completion_length=24, engine=engine, **settings))


@pytest.mark.parametrize("engine", ["shared", "transformers"])
def test_rewards_see_what_was_written(engine: str):
    """Special tokens and all spaces; only the end of sequence, and what the batch is padded with, is cut."""
    policy = writes_special_tokens(engine, eos_token_ids=(20, 21, 22, 23))
    rollouts = policy.sample([Prompt("Hi")], 16, generator(0))
    tokens_BT, length_B = rollouts.trace["token_BT"], rollouts.trace["length_B"]
    for row, output in enumerate(rollouts.outputs):
        written = tokens_BT[row, : int(length_B[row])].tolist()
        if rollouts.stop[row] == "eos":
            assert written.pop() in policy.eos_ids
        assert output.ids == tuple(written)
        assert output.text == "".join(policy.tokenizer.convert_ids_to_tokens(written))
    assert set(rollouts.stop) == {"eos", "length"}
    assert any("<think" in output.text for output in rollouts.outputs)


@pytest.mark.parametrize("engine", ["shared", "transformers"])
def test_special_tokens_are_skipped_on_request(engine: str):
    kept = writes_special_tokens(engine).sample([Prompt("Hi")], 8, generator(0)).outputs
    skipped = writes_special_tokens(engine, skip_special_tokens=True).sample([Prompt("Hi")], 8, generator(0)).outputs
    assert [output.ids for output in kept] == [output.ids for output in skipped]
    assert [re.sub(r"<think\d+>", "", output.text) for output in kept] == [output.text for output in skipped]
