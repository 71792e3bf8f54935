"""The chat format: text to token ids and back, one conversation at a time.

    <|doc|> <|task|> INSTRUCTION <|end|> <|act|> COMMAND <|end|> <|obs|> OUTPUT <|end|> <|act|> ... exit <|end|>

A `Chat` owns a tokenizer file (byte-level, so any text survives the round trip) and nothing else. Turns are bridged by ids:
what the policy produced goes into the next prompt as it is and is never decoded and encoded again. Instructions and outputs
are hostile text: a special token's spelling inside them becomes ordinary tokens, never the special id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gymsmith.errors import ConfigError

SPECIALS = ("<|pad|>", "<|doc|>", "<|task|>", "<|act|>", "<|obs|>", "<|end|>")
"""In the order of their ids in tokenizers of our own."""

ELLIPSIS = "..."
"""Stands where the middle of an observation was cut out."""

EXIT = "exit"
"""The action by which an agent says that it is done."""


class Chat:
    """Encodes the turns of one format with one tokenizer. Immutable and shared by all episodes of a process."""

    def __init__(self, tokenizer: Tokenizer, name: str = "") -> None:
        """Take over `tokenizer` (its handling of special tokens is set here). `name` is its content-addressed file name.

        Raises:
            ConfigError: a special token is missing, is not marked special, or its spelling in plain text would become its id.
        """
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.name = name
        self.vocab_size: int = tokenizer.get_vocab_size()
        known: dict[str, int] = tokenizer.get_vocab()
        missing = [token for token in SPECIALS if token not in known]
        if missing:
            raise ConfigError(
                f"tokenizer {name or '(unnamed)'} must know {SPECIALS}, lacks {missing}; train one with trainer.data.tokenizer"
            )
        self.pad, self.doc, self.task, self.act, self.obs, self.end = (known[token] for token in SPECIALS)
        self.specials = frozenset(known[token] for token in SPECIALS)
        for added in tokenizer.get_added_tokens_decoder().values():
            self._check_plain(added.content)
        self._ellipsis = self.encode(ELLIPSIS)
        self._token_chars = max(map(len, known))

    @classmethod
    def load(cls, path: Path) -> Chat:
        """Read a tokenizer file; the same file is read once per process.

        Raises:
            ConfigError: no such file, or not a tokenizer of this format.
        """
        return _load(Path(path))

    @classmethod
    def of_bytes(cls) -> Chat:
        """A chat whose tokens are single bytes, for attempts that no model makes."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.add_special_tokens(list(SPECIALS))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return cls(tokenizer, "bytes")

    def encode(self, text: str) -> list[int]:
        """Plain text to ids. No special id can come out, whatever the text says."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text for people and tools; a special token shows as its spelling, bytes that are not UTF-8 as U+FFFD."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def start(self, instruction: str) -> list[int]:
        """The first prompt: everything up to and with the opening of the first action."""
        return [self.doc, self.task, *self.encode(instruction), self.end, self.act]

    def action(self, command: str) -> list[int]:
        """The ids a policy would produce to say `command`, with the closing token. For demonstrations and scripted policies."""
        return [*self.encode(command), self.end]

    def command(self, produced: Sequence[int]) -> str:
        """The command in the ids that a policy produced: all but the closing token."""
        return self.decode(produced[:-1] if produced and produced[-1] == self.end else produced)

    def closing(self, produced: Sequence[int]) -> list[int]:
        """What must follow `produced` before an observation: nothing, or the closing token that a cut turn lacks (masked)."""
        return [] if produced and produced[-1] == self.end else [self.end]

    def observation(self, text: str, limit_tokens: int) -> list[int]:
        """An output as ids, and the opening of the next action; the output itself takes at most `limit_tokens` ids."""
        return [self.obs, *self.cut(text, limit_tokens), self.end, self.act]

    def cut(self, text: str, limit_tokens: int) -> list[int]:
        """Encode `text` to at most `limit_tokens` ids: the first two thirds, an ellipsis, and the end.

        A long text is shortened before it is encoded, so the cost follows the limit and not the text.
        """
        reach = limit_tokens * self._token_chars + 1
        if len(text) <= 2 * reach:
            ids = self.encode(text)
            if len(ids) <= limit_tokens:
                return ids
            head, tail = ids, ids
        else:
            head, tail = self.encode(text[:reach]), self.encode(text[-reach:])
        room = limit_tokens - len(self._ellipsis)
        if room < 2:
            return head[:limit_tokens]
        n_tail = room // 3
        return [*head[: room - n_tail], *self._ellipsis, *(tail[-n_tail:] if n_tail else [])]

    def demonstration(
        self, instruction: str, steps: Sequence[tuple[str, str]], observation_tokens: int
    ) -> tuple[list[int], list[int]]:
        """A finished conversation as (ids, mask), both of length T; mask 1 on every command and its closing token.

        `steps` are (command, output); the output of the last one is not part of the conversation.
        """
        ids = self.start(instruction)
        mask = [0] * len(ids)
        for i, (command, output) in enumerate(steps):
            said = self.action(command)
            heard = self.observation(output, observation_tokens) if i + 1 < len(steps) else []
            ids += said + heard
            mask += [1] * len(said) + [0] * len(heard)
        return ids, mask

    def _check_plain(self, token: str) -> None:
        """Refuse a tokenizer that turns the spelling of an added token in plain text into that token."""
        texts = (token, f"a{token} {token}\n{token}")
        if any(self.tokenizer.token_to_id(token) in self.encode(text) for text in texts):
            raise ConfigError(
                f"tokenizer {self.name or '(unnamed)'} reads the text {token!r} as the token itself, so any file could "
                "forge a turn; mark it special and keep it out of the merges"
            )


@lru_cache(maxsize=8)
def _load(path: Path) -> Chat:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a missing or malformed file
        raise ConfigError(f"{path} must be a tokenizer file, got: {error}; train one with `gymsmith train pretrain`") from error
    return Chat(tokenizer, path.name)
