"""What a stage's config names, found and opened: models and chats of checkpoints, text, shards, demonstrations, environments.

It reads the state folder and the store; the one thing that it writes is tokenizers. Nothing here trains.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError, NotFound
from gymsmith.schema import Status
from gymsmith.store import Store
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.data import documents, tokenizer
from trainer.data.deck import Deck
from trainer.data.packing import Item
from trainer.data.shards import Shards
from trainer.model.transformer import Transformer
from trainer.stages import sft


class Inputs:
    """What one config asks for."""

    def __init__(self, store: Store, config: TrainConfig) -> None:
        self.store, self.config = store, config
        self.home, self.tokenizers = store.settings.home, store.settings.tokenizers_dir

    def path(self, given: str) -> Path:
        """A path as given, relative ones below the state folder.

        Raises:
            NotFound: nothing is there.
        """
        path = Path(given) if Path(given).is_absolute() else self.home / given
        if not path.exists():
            raise NotFound(f"expected a file or folder at {path}, got nothing; fix the path or make it first")
        return path

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The checkpoint to start from."""
        return checkpoint.load(self.path(self.config.start))

    def start(self) -> tuple[Transformer, Chat]:
        """The model and the chat of the checkpoint to start from."""
        found = self.checkpoint()
        chat = Chat.load(self.tokenizers / (self.config.tokenizer or self._kept(found.tokenizer)))
        if chat.vocab_size > found.model.vocab_size:
            # Fewer are fine: tables of imported models are often padded.
            raise ConfigError(
                f"expected a tokenizer of at most {found.model.vocab_size} entries, got {chat.vocab_size}; use the checkpoint's"
            )
        return found.build(), chat

    def text(self) -> tuple[Chat, list[documents.Document]]:
        """The corpus as token ids, by the tokenizer that is named or by one trained on it."""
        recipe = self.config.recipe
        texts = documents.read_documents(self.path(self.config.corpus))
        if self.config.tokenizer:
            name = self.config.tokenizer
        else:
            trained = tokenizer.train((text for segments in texts for _, text, _ in segments), recipe.tokenizer.vocab_size)
            name = tokenizer.store(trained, self.tokenizers)
        chat = Chat.load(self.tokenizers / name)
        cut = recipe.rollout.context.observation_tokens
        return chat, documents.encode(chat, texts, recipe.pretrain.observation_weight, cut)

    def sources(self, words: str) -> tuple[Chat, dict[str, Deck]]:
        """The chat and a deck for each source. `words`: JSON of the tokenizer of the checkpoint to start from, if there is one.

        Raises:
            ConfigError: the sources were made with other tokenizers than the model's, or nobody says which it is.
        """
        opened = {name: Shards(self.path(source.path)) for name, source in self.config.sources.items()}
        named = {shards.tokenizer for shards in opened.values()} - {""}
        name = self._kept(words) if words else self.config.tokenizer
        name = name or next(iter(named), "")
        if named - {name} or not name:
            got = ", ".join(f"{source}: {shards.tokenizer or 'unnamed'}" for source, shards in sorted(opened.items()))
            expected = f"sources made with tokenizer {name or '(none is named)'}"
            raise ConfigError(f"expected {expected}, got {got}; tokenise them with it, or name it")
        chat = Chat.load(self.tokenizers / name)
        for source, shards in opened.items():
            if shards.vocab_size > chat.vocab_size:
                above = f"expected ids below {chat.vocab_size}, got {shards.vocab_size}"
                raise ConfigError(f"source {source}: {above}; tokenise it with the model's tokenizer")
        limits = self.config.sources
        return chat, {
            source: Deck(source, shards, self.config.seed, limits[source].min_tokens, limits[source].max_tokens)
            for source, shards in opened.items()
        }

    def demonstrations(self, chat: Chat) -> list[list[Item]]:
        """What SFT shows: the passed attempts of a run, or a file."""
        if self.config.demonstrations_run:
            return sft.from_run(self.store, self.config.demonstrations_run)
        shown = self.path(self.config.demonstrations)
        return sft.from_file(shown, chat, self.config.recipe.rollout.context.observation_tokens)

    def cells(self) -> dict[str, str]:
        """Environment id -> family/level, for everything that DPO and RL may draw."""
        given = self.config.environments
        ids = given or self.store.environment_ids(kind="shell", status=Status.VERIFIED, labels={"split": "train"})
        if not ids:
            raise ConfigError("expected environments to train in, got none that are verified; run `gymsmith generate shell:all`")
        found = [self.store.environment(i) for i in ids]
        return {e.id: f"{e.spec.labels.get('family', e.spec.kind)}/{e.spec.labels.get('level', '')}" for e in found}

    def _kept(self, words: str) -> str:
        """Name of a checkpoint's tokenizer, put among the others."""
        return tokenizer.store(Tokenizer.from_str(words), self.tokenizers)
