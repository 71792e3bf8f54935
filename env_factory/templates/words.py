"""The words that the shell families are told in, and their split.

Common short English nouns, so that the tokenizer can afford one token for each. A task of the split "train" uses only
`TRAIN`, a task of the split "held_out" uses only `HELD_OUT`; the pre-training corpus may use all of them, because a model
that has never seen a word at all cannot be blamed for not writing it.
"""

import random

from gymsmith.errors import ConfigError

WORDS: tuple[str, ...] = tuple(
    """
ant apple ark arm ash axe baby bag ball bank barn bat bay bead bean bear bed bee bell belt bird boat bolt bone
book boot bow bowl box boy brick bus cab cake camp can cap car card cart cave chain chair city clay cliff clock
cloud coal coat coin cone cook cork corn cow crab crow crown cube cup dam deer desk dish dog doll door dove drum
duck dust ear egg elk elm eye fan farm fern fig fire fish flag flea flute foam fog fork fox frog fruit gas gate
gem gift goat gust goose grape grass gull hair ham hand harp hat hawk hay heart hen herb hill hive hook horn
horse house ice ink iron ivy jewel jaw jet jug kite kiwi knee knot lake lamb lamp lark leaf leg lemon lime lion
lock lobe loom map mask mast maze milk mill mint mole moon moss moth mouse mud mule nail neck nest net nose nut
oak oar oat olive onion orb owl ox pan pea peach pear pen pie pig pin pine pipe plum pond pool pot quill rag
rail rain ram reed rice ring river road robe rock roof root rope rose rug rye sack sail salt sand seal seed
shark sheep shell ship shoe silk sink skin sled snail snow soap sock soil soup spoon star stem stone sun swan
sword tile tank tape tea tent tin toad tool torch tower toy train tray tree truck tub tulip urn van vase vest
vine vole wand wasp wax well whale wheat wheel wind wing wolf wood wool worm yak yam yarn zebra
""".split()  # noqa: SIM905
)

HELD_OUT: tuple[str, ...] = WORDS[4::9] + WORDS[8::9]
"""Words that no training task uses; two in nine, spread over the alphabet."""

TRAIN: tuple[str, ...] = tuple(word for word in WORDS if word not in HELD_OUT)

SPLITS: dict[str, tuple[str, ...]] = {"train": TRAIN, "held_out": HELD_OUT}


def draw(rng: random.Random, split: str, count: int) -> list[str]:
    """`count` words of `split`, none of which contains another, so that a `grep WORD` never matches by accident.

    Raises:
        ConfigError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ConfigError(f"expected a word split out of {sorted(SPLITS)}, got {split!r}; pass split='train' or 'held_out'")
    pool = rng.sample(SPLITS[split], len(SPLITS[split]))
    chosen: list[str] = []
    for word in pool:
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
        if len(chosen) == count:
            return chosen
    raise ConfigError(f"expected {count} words of split {split!r} without overlap, found {len(chosen)}; ask for fewer words")
