"""Image Folder, Images and Captions, Latents and Conditionings: what an adapter is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..algorithms.errors import DatasetError
from ..algorithms.training.buckets import BucketConfig, Size
from ..algorithms.training.captions import CaptionConfig
from ..algorithms.training.dataset import Dataset, Draw, Item
from ..algorithms.training.dataset_report import dataset_report
from ..algorithms.training.folders import Found, Reading, folder_state, scan
from .dataset_sheet import Sample, dataset_sheet
from .drawing import Bytes
from .host import decoding
from .host.images import as_bytes, as_image
from .host.input_folders import input_folder
from .host.items import image_items, latent_items
from .host.messages import show_text
from .schema import advanced, optional
from .sockets import DatasetSocket

CAPTION_FILES = {
    ".txt, else .caption": (".txt", ".caption"),
    ".txt": (".txt",),
    ".caption": (".caption",),
}
SHOWN = 12
"""Pictures on the sheet."""
SHARE = {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}


def resolution_input() -> io.Int.Input:
    """Returns the size that pictures are trained in."""
    return io.Int.Input(
        "resolution",
        default=512,
        min=64,
        max=8192,
        step=8,
        tooltip="Side in pixels of a square picture; others get the same area. 512 for SD 1.5, "
        "1024 for SDXL, Flux and most later models.",
    )


def trigger_input() -> io.String.Input:
    """Returns the word that will call what is trained."""
    return io.String.Input(
        "trigger_word",
        default="",
        tooltip="The word that will call what is trained, such as ohwx cat. It is put in front of "
        "every caption that lacks it, and in place of [trigger]. Best one that the model does not "
        "know; empty for a style without one.",
    )


def tag_inputs() -> list[io.Input]:
    """Returns what happens to captions at each step."""
    return [
        io.Boolean.Input(
            "shuffle_tags",
            default=False,
            tooltip="Puts the tags of a caption in another order at each step, so that none counts by "
            "its place. For captions of tags with commas, not for sentences.",
        ),
        io.Int.Input(
            "keep_tags",
            default=0,
            min=0,
            max=1000,
            tooltip="How many tags at the beginning are neither shuffled nor left out: 1 if the first "
            "one names the thing, 0 if all are alike.",
        ),
        io.Float.Input(
            "caption_dropout",
            **SHARE,
            tooltip="Share of steps in which a picture has no caption. 0.05 to 0.1 keeps what a "
            "negative prompt works against; 0 is usual for few pictures.",
        ),
        advanced(
            io.Float.Input(
                "tag_dropout",
                **SHARE,
                tooltip="Share of tags that a step leaves out, so that it learns to do without them. "
                "0.1 at most; 0 is usual.",
            )
        ),
    ]


def fitting_inputs() -> list[io.Input]:
    """Returns how pictures are fitted into the sizes that are trained."""
    return [
        advanced(
            io.Boolean.Input(
                "buckets",
                default=True,
                tooltip="Sorts pictures by aspect ratio into buckets, sizes of equal area, so that little "
                "is cropped. Off: all are cropped to a square.",
            )
        ),
        advanced(
            io.Int.Input(
                "bucket_min",
                default=0,
                min=0,
                max=8192,
                step=8,
                tooltip="Shortest side of a bucket in pixels. 0 is usual, and takes half of the resolution.",
            )
        ),
        advanced(
            io.Int.Input(
                "bucket_max",
                default=0,
                min=0,
                max=16384,
                step=8,
                tooltip="Longest side of a bucket in pixels. 0 is usual, and takes twice the resolution.",
            )
        ),
        advanced(
            io.Int.Input(
                "bucket_step",
                default=64,
                min=8,
                max=512,
                step=8,
                tooltip="Sides of buckets are multiples of it. 64 is right for all; 32 for SDXL, Flux "
                "and SD3 crops less.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "no_upscale",
                default=False,
                tooltip="Never enlarges a picture: small ones are trained small. For pictures below the "
                "resolution. bucket_min and bucket_max are not read then.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "flip",
                default=False,
                tooltip="Mirrors pictures in half of the steps, as if there were twice as many. Not for "
                "what has a left and a right, such as text, partings and badges.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "random_crop",
                default=False,
                tooltip="Crops at another place each time, and not in the middle. Slower: pictures must "
                "be encoded again at each step.",
            )
        ),
    ]


def dataset_output() -> io.Custom.Output:
    """Returns the socket for Train LoRA."""
    return DatasetSocket.Output(
        display_name="dataset", tooltip="Items, captions and buckets. Connect it to Train LoRA."
    )


def preview_output() -> io.Image.Output:
    """Returns the sheet."""
    return io.Image.Output(
        display_name="preview",
        tooltip="Buckets with their counts, and pictures with captions as a step trains them.",
    )


def report_output() -> io.String.Output:
    """Returns the report."""
    return io.String.Output(
        display_name="report", tooltip="Counts, buckets, and what was skipped and why."
    )


class ImageFolder(io.ComfyNode):
    """Reads a folder of pictures and captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterDataset",
            display_name="Image Folder",
            category="Any Adapter/training",
            description=(
                "Pictures to train on, with a text file of the same name beside each as its "
                "caption. In a folder such as 10_sks dog they come ten times in an epoch."
            ),
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Name of a folder in ComfyUI's input folder, or a whole path. Its pictures are "
                    "read, and those of the folders in it. 10 to 40 good ones are a start.",
                ),
                resolution_input(),
                *optional(
                    trigger_input(),
                    *tag_inputs(),
                    io.String.Input(
                        "regularization_folder",
                        default="",
                        tooltip="A folder with pictures of what the trained thing is one of (any dogs), "
                        "which keep the model from drawing them all like it. They come as often as the "
                        "others in all, without the trigger word. Empty, as is usual: none.",
                    ),
                    *fitting_inputs(),
                    advanced(
                        io.String.Input(
                            "mask_folder",
                            default="",
                            tooltip="A folder with a mask for each picture, of the same name: what is white "
                            "in it is trained, what is black is not. Empty: none.",
                        )
                    ),
                    advanced(
                        io.Boolean.Input(
                            "alpha_is_mask",
                            default=False,
                            tooltip="Takes the transparency of a picture for its mask: what cannot be seen "
                            "is not trained. Off: it is trained as white.",
                        )
                    ),
                    advanced(
                        io.Combo.Input(
                            "caption_files",
                            options=list(CAPTION_FILES),
                            default=next(iter(CAPTION_FILES)),
                            tooltip="Ending of the text files with captions. The first choice takes what it "
                            "finds.",
                        )
                    ),
                    advanced(
                        io.String.Input(
                            "caption_prefix",
                            default="",
                            tooltip="Text in front of every caption, with a blank between: a photo of. "
                            "Empty: none.",
                        )
                    ),
                    advanced(
                        io.String.Input(
                            "caption_suffix",
                            default="",
                            tooltip="Text behind every caption, with a blank between: in the style of ohwx. "
                            "Empty: none.",
                        )
                    ),
                    advanced(
                        io.Boolean.Input(
                            "wildcards",
                            default=False,
                            tooltip="{red|blue} in a caption becomes one of them at each step, "
                            "and of several lines one is taken. Off: the first line, as it is.",
                        )
                    ),
                    advanced(
                        io.String.Input(
                            "tag_separator",
                            default=",",
                            tooltip="What stands between the tags of a caption. A comma is usual.",
                        )
                    ),
                    advanced(
                        io.String.Input(
                            "keep_separator",
                            default="|||",
                            tooltip="What stands before it in a caption stays at the beginning, what "
                            "stands behind a second one at the end; keep_tags is not read there.",
                        )
                    ),
                    advanced(
                        io.String.Input(
                            "secondary_separator",
                            default="",
                            tooltip="Joins tags that are shuffled as one, such as ;;; - it becomes the "
                            "separator in the end.",
                        )
                    ),
                    advanced(
                        io.Int.Input(
                            "dropout_every_epochs",
                            default=0,
                            min=0,
                            max=10000,
                            tooltip="Each so many-th time that all pictures are gone through, they have no "
                            "captions. 0, as is usual: never.",
                        )
                    ),
                    advanced(
                        io.Int.Input(
                            "warmup_epochs",
                            default=0,
                            min=0,
                            max=10000,
                            tooltip="Begins with warmup_tags tags of each caption, and has all of them after "
                            "so many epochs. 0, as is usual: all from the start.",
                        )
                    ),
                    advanced(
                        io.Int.Input(
                            "warmup_tags",
                            default=1,
                            min=0,
                            max=1000,
                            tooltip="With warmup_epochs: how many tags the first epoch has, besides "
                            "those that are kept.",
                        )
                    ),
                ),
            ],
            outputs=[dataset_output(), preview_output(), report_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: str | None,
        regularization_folder: str | None = "",
        mask_folder: str | None = "",
        **_: Any,
    ) -> str:
        """Returns what changes when a file in a folder does, so that edits are taken up."""
        named = [name for name in (folder, regularization_folder, mask_folder) if name]
        try:
            return folder_state([input_folder(name) for name in named])
        except DatasetError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        folder: str,
        resolution: int,
        trigger_word: str = "",
        shuffle_tags: bool = False,
        keep_tags: int = 0,
        caption_dropout: float = 0.0,
        tag_dropout: float = 0.0,
        regularization_folder: str = "",
        buckets: bool = True,
        bucket_min: int = 0,
        bucket_max: int = 0,
        bucket_step: int = 64,
        no_upscale: bool = False,
        flip: bool = False,
        random_crop: bool = False,
        mask_folder: str = "",
        alpha_is_mask: bool = False,
        caption_files: str = next(iter(CAPTION_FILES)),
        caption_prefix: str = "",
        caption_suffix: str = "",
        wildcards: bool = False,
        tag_separator: str = ",",
        keep_separator: str = "|||",
        secondary_separator: str = "",
        dropout_every_epochs: int = 0,
        warmup_epochs: int = 0,
        warmup_tags: int = 1,
    ) -> io.NodeOutput:
        """Returns the dataset, its sheet, and the report, which also stands on the node."""
        captions = CaptionConfig(
            trigger=trigger_word.strip(),
            shuffle=shuffle_tags,
            keep_tags=keep_tags,
            keep_separator=keep_separator,
            separator=tag_separator,
            secondary_separator=secondary_separator,
            dropout=caption_dropout,
            dropout_every_epochs=dropout_every_epochs,
            tag_dropout=tag_dropout,
            warmup_epochs=warmup_epochs,
            warmup_tags=warmup_tags,
            prefix=caption_prefix,
            suffix=caption_suffix,
            wildcards=wildcards,
        )
        config = BucketConfig(buckets, bucket_min, bucket_max, bucket_step, no_upscale)
        found = _read(
            input_folder(folder),
            input_folder(regularization_folder) if regularization_folder.strip() else None,
            input_folder(mask_folder) if mask_folder.strip() else None,
            alpha_is_mask=alpha_is_mask,
            caption_suffixes=CAPTION_FILES[caption_files],
            trigger=captions.trigger,
        )
        dataset = Dataset(
            items=tuple(item for one in found for item in one.items),
            resolution_px=resolution,
            captions=captions,
            buckets=config,
            flip=flip,
            random_crop=random_crop,
            skipped=tuple(line for one in found for line in one.skipped),
            notes=tuple(line for one in found for line in one.notes),
        )
        return _shown(dataset, input_folder(folder).name, cls.hidden.unique_id)


class ImagesAndCaptions(io.ComfyNode):
    """Takes pictures and captions from the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterImageDataset",
            display_name="Images and Captions",
            category="Any Adapter/training",
            description="Pictures and captions of other nodes to train on: lists of them, or a batch.",
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="Pictures to train on: a list, of any sizes, or a batch."
                ),
                io.String.Input(
                    "captions",
                    force_input=True,
                    optional=True,
                    tooltip="A list of texts, one for each picture, or one for all. Nothing: the trigger "
                    "word alone.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One for each picture, or one for all: white is trained, black is not.",
                ),
                resolution_input(),
                *optional(trigger_input(), *tag_inputs(), *fitting_inputs()),
            ],
            outputs=[dataset_output(), preview_output(), report_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: list[Any],
        resolution: list[int],
        trigger_word: Sequence[str] = ("",),
        shuffle_tags: Sequence[bool] = (False,),
        keep_tags: Sequence[int] = (0,),
        caption_dropout: Sequence[float] = (0.0,),
        tag_dropout: Sequence[float] = (0.0,),
        buckets: Sequence[bool] = (True,),
        bucket_min: Sequence[int] = (0,),
        bucket_max: Sequence[int] = (0,),
        bucket_step: Sequence[int] = (64,),
        no_upscale: Sequence[bool] = (False,),
        flip: Sequence[bool] = (False,),
        random_crop: Sequence[bool] = (False,),
        captions: list[str] | None = None,
        masks: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Returns the dataset, its sheet and the report. Every input is a list, as the host gives it."""
        items, skipped = image_items(images, captions or [], masks or [])
        dataset = Dataset(
            items=items,
            resolution_px=resolution[0],
            captions=CaptionConfig(
                trigger=trigger_word[0].strip(),
                shuffle=shuffle_tags[0],
                keep_tags=keep_tags[0],
                dropout=caption_dropout[0],
                tag_dropout=tag_dropout[0],
            ),
            buckets=BucketConfig(
                buckets[0], bucket_min[0], bucket_max[0], bucket_step[0], no_upscale[0]
            ),
            flip=flip[0],
            random_crop=random_crop[0],
            skipped=skipped,
        )
        return _shown(dataset, "Images of the graph", cls.hidden.unique_id)


class LatentsAndConditionings(io.ComfyNode):
    """Takes what has been encoded already."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterLatentDataset",
            display_name="Latents and Conditionings",
            category="Any Adapter/training",
            description=(
                "Latents and conditionings to train on, such as those of Make Training Dataset. No "
                "VAE and no text encoder run in training, and captions stay as they are."
            ),
            is_input_list=True,
            inputs=[
                io.Latent.Input(
                    "latents",
                    tooltip="Encoded pictures, as of VAE Encode: a list, of any sizes, or a batch.",
                ),
                io.Conditioning.Input(
                    "conditionings",
                    tooltip="Encoded captions, as of CLIP Text Encode: one for each latent, or one for "
                    "all.",
                ),
            ],
            outputs=[dataset_output(), report_output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latents: list[Any], conditionings: list[Any]) -> io.NodeOutput:
        """Returns the dataset and the report. Every input is a list, as the host gives it."""
        dataset = Dataset(latent_items(latents, conditionings))
        text = dataset_report(dataset)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(dataset, text, ui={"text": [text]})


def _read(
    folder: Path,
    regularization: Path | None,
    masks: Path | None,
    *,
    alpha_is_mask: bool,
    caption_suffixes: Sequence[str],
    trigger: str,
) -> list[Found]:
    """Returns what is in the folder, and in that of regularisation pictures.

    Raises:
        DatasetError: There is nothing in one of them.
    """
    suffixes = decoding.readable_suffixes()
    own = Reading(
        look=decoding.look,
        suffixes=suffixes,
        caption_suffixes=caption_suffixes,
        trigger=trigger,
        masks=masks,
        alpha_is_mask=alpha_is_mask,
        leave_out=[regularization] if regularization else [],
    )
    if regularization is None:
        return [scan(folder, own)]
    others = Reading(
        look=decoding.look,
        suffixes=suffixes,
        caption_suffixes=caption_suffixes,
        regularization=True,
        leave_out=[folder],
    )
    return [scan(folder, own), scan(regularization, others)]


def _shown(dataset: Dataset, title: str, node_id: str) -> io.NodeOutput:
    """Returns the outputs of a dataset of pictures."""
    samples, faults = _samples(dataset)
    if faults:
        dataset = dataset.without(faults)
    text = dataset_report(dataset)
    show_text(node_id, text)
    heading = f"{title}: {dataset.count()} draws in an epoch at {dataset.resolution_px}"
    sheet = dataset_sheet(heading, dataset.bucket_counts(), samples)
    return io.NodeOutput(dataset, as_image(sheet), text, ui={"text": [text]})


def _samples(dataset: Dataset) -> tuple[list[Sample], dict[Item, str]]:
    """Returns pictures of all buckets in turn, and the items that could not be shown."""
    first = {draw.item: draw for (draw,) in dataset.epoch(0, 1, 0)}
    of_bucket: dict[Size, list[Draw]] = {}
    for draw in (first[item] for item in dataset.items if item in first):
        of_bucket.setdefault(draw.placement.bucket_px, []).append(draw)
    turns = [turn for draws in of_bucket.values() for turn in enumerate(draws)]
    samples: list[Sample] = []
    faults: dict[Item, str] = {}
    for _, draw in sorted(turns, key=lambda turn: turn[0]):
        if len(samples) == SHOWN:
            break
        try:
            samples.append(Sample(_pixels(draw), draw.caption))
        except DatasetError as fault:
            faults[draw.item] = str(fault)
    return samples, faults


def _pixels(draw: Draw) -> Bytes:
    """Returns a picture as it is trained, dark where its mask leaves it out."""
    pixels, mask = decoding.picture(draw), decoding.mask(draw)
    if mask is not None:
        pixels = pixels * (0.2 + 0.8 * mask[:, :, None])
    return as_bytes(pixels.numpy())
