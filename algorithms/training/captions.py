"""Captions: from the text beside a picture to the words that one step trains.

The order is that of sd-scripts: prefix and suffix, dropout of the whole caption, wildcards, kept
and flexible tags, warm-up of the number of tags, shuffling, dropout of tags, and the second
separator. The trigger word comes last, so that no step loses it but the one without a caption.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import DatasetError

TRIGGER_PLACE = "[trigger]"
"""Stands for the trigger word in a caption, as in ai-toolkit."""

CHOICE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class CaptionConfig:
    """What happens to captions; shares are from 0 to 1."""

    trigger: str = ""
    """Put in front of captions that lack it; not of regularisation pictures."""
    shuffle: bool = False
    keep_tags: int = 0
    """How many tags stay at the beginning; without meaning where the next one is in the caption."""
    keep_separator: str = "|||"
    """What stands before it stays at the beginning, what stands after a second one at the end."""
    separator: str = ","
    secondary_separator: str = ""
    """Becomes the separator in the end, so that tags joined by it are shuffled as one."""
    dropout: float = 0.0
    """Share of steps without any caption."""
    dropout_every_epochs: int = 0
    """Every so many epochs have no captions at all; 0 for none."""
    tag_dropout: float = 0.0
    """Share of flexible tags that are left out."""
    warmup_epochs: int = 0
    """For so long the number of flexible tags grows to all of them; 0 for all from the start."""
    warmup_tags: int = 1
    """How many flexible tags the first epoch has, if they grow."""
    prefix: str = ""
    suffix: str = ""
    wildcards: bool = False
    """`{red|blue}` becomes one of them, and of several lines one is taken; else the first line."""

    def __post_init__(self) -> None:
        for name, share in (("caption", self.dropout), ("tag", self.tag_dropout)):
            if not 0 <= share <= 1:
                raise DatasetError(f"The {name} dropout is {share}: give a share from 0 to 1.")
        if not self.separator.strip():
            raise DatasetError("Tags need a separator that is no blank: give a comma.")
        counts = (self.keep_tags, self.dropout_every_epochs, self.warmup_epochs, self.warmup_tags)
        if min(counts) < 0:
            raise DatasetError("Numbers of tags and epochs are 0 or more: one is negative.")

    @property
    def vary(self) -> bool:
        """Whether a caption is another one from draw to draw."""
        return self.wildcards or self != self.complete()

    def complete(self) -> "CaptionConfig":
        """Returns the same without what leaves out or reorders: for validation."""
        return replace(
            self,
            shuffle=False,
            dropout=0.0,
            dropout_every_epochs=0,
            tag_dropout=0.0,
            warmup_epochs=0,
        )


def written(lines: Sequence[str], config: CaptionConfig, epoch: int, chance: random.Random) -> str:
    """Returns the caption of one step.

    Args:
        lines: The text of the picture.
        config: What happens to it.
        epoch: From 0.
        chance: Every decision is drawn from it, so the same one makes the same caption.
    """
    if chance.random() < config.dropout or _without_captions(config, epoch):
        return ""
    lines = [_framed(line, config) for line in lines] or [_framed("", config)]
    text = _chosen(chance.choice(lines), chance) if config.wildcards else lines[0]
    text = _with_tags(text, config, epoch, chance)
    if config.secondary_separator:
        text = text.replace(config.secondary_separator, config.separator)
    return with_trigger(text, config)


def with_trigger(text: str, config: CaptionConfig) -> str:
    """Returns a caption that has the trigger word, in front where it was missing."""
    text, trigger = text.replace(TRIGGER_PLACE, config.trigger), config.trigger.strip()
    whole_word = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    if not trigger or re.search(whole_word, text, re.IGNORECASE):
        return text
    return f"{trigger}{config.separator} {text}" if text else trigger


def _without_captions(config: CaptionConfig, epoch: int) -> bool:
    return bool(config.dropout_every_epochs) and (epoch + 1) % config.dropout_every_epochs == 0


def _framed(line: str, config: CaptionConfig) -> str:
    return " ".join(part for part in (config.prefix, line, config.suffix) if part)


def _chosen(text: str, chance: random.Random) -> str:
    """Returns a text with its wildcards decided; `{{` and `}}` are plain braces."""
    parts = re.split(r"(\{\{|\}\})", text)
    decided = (CHOICE.sub(lambda found: chance.choice(found[1].split("|")), one) for one in parts)
    return "".join({"{{": "{", "}}": "}"}.get(one, one) for one in decided)


def _with_tags(text: str, config: CaptionConfig, epoch: int, chance: random.Random) -> str:
    """Returns a caption whose flexible tags are chosen and ordered."""
    split = bool(config.keep_separator) and config.keep_separator in text
    if not split and not (config.shuffle or config.tag_dropout or epoch < config.warmup_epochs):
        return text
    if split:
        head, middle, *tail = text.split(config.keep_separator, 2)
        fixed, flexible = _tags(head, config), _tags(middle, config)
        last = _tags(tail[0], config) if tail else []
    else:
        tags = _tags(text, config)
        fixed, flexible, last = tags[: config.keep_tags], tags[config.keep_tags :], []
    if epoch < config.warmup_epochs:
        more = max(len(flexible) - config.warmup_tags, 0) * epoch // config.warmup_epochs
        flexible = flexible[: config.warmup_tags + more]
    if config.shuffle:
        chance.shuffle(flexible)
    if config.tag_dropout:
        flexible = [tag for tag in flexible if chance.random() >= config.tag_dropout]
    return f"{config.separator} ".join([*fixed, *flexible, *last])


def _tags(text: str, config: CaptionConfig) -> list[str]:
    return [tag.strip() for tag in text.split(config.separator) if tag.strip()]
