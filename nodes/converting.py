"""Convert Adapter: makes a LoRA of any adapter, of another size, or whole differences."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..algorithms.editing.conversion import (
    ALL_OF_IT,
    Conversion,
    To,
    conversion_report,
    converted,
)
from ..algorithms.editing.size import Size
from ..algorithms.formats.parse import AdapterSet
from .host.messages import LayersBar, show_text
from .placing import placed
from .schema import advanced
from .sockets import AdapterSocket

TO: list[To] = ["LoRA", "full difference", "as it is"]
ALL, RANK, ENERGY, ERROR = "all of it", "rank", "kept energy", "error"
LARGEST_RANK = 8192


class ConvertAdapter(io.ComfyNode):
    """Makes another adapter that changes the same, or nearly the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterConvert",
            display_name="Convert Adapter",
            category="Any Adapter",
            description=(
                "Makes a LoRA of an adapter of any kind, resizes a LoRA, or makes whole differences. "
                "The report says how large the error is."
            ),
            inputs=[
                AdapterSocket.Input("adapter", tooltip="What to convert."),
                io.Combo.Input(
                    "to",
                    options=[*TO],
                    default="LoRA",
                    tooltip="LoRA: every method, of the size below. full difference: the change of "
                    "each weight as it is, exact and large. as it is: LoRAs are resized or cut, "
                    "other methods stay.",
                ),
                io.Combo.Input(
                    "size",
                    options=[ALL, RANK, ENERGY, ERROR],
                    default=ALL,
                    tooltip="What decides how large a LoRA becomes. all of it: as many ranks as each "
                    "layer takes to lose nothing. The other three are the numbers below; with kept "
                    "energy and error each layer gets the rank that it takes.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=LARGEST_RANK,
                    tooltip="Of every layer, for size rank. A layer of fewer ranks keeps its own.",
                ),
                io.Float.Input(
                    "kept_energy",
                    default=0.99,
                    min=0.01,
                    max=1.0,
                    step=0.001,
                    tooltip="For size kept energy: the share of the squared singular values that "
                    "each layer keeps at least.",
                ),
                io.Float.Input(
                    "error",
                    default=0.05,
                    min=0.0,
                    max=0.99,
                    step=0.001,
                    tooltip="For size error: what each layer loses at most, as a share of its "
                    "change. 0.05 is 5 %.",
                ),
                io.Int.Input(
                    "largest_rank",
                    default=0,
                    min=0,
                    max=LARGEST_RANK,
                    tooltip="No layer gets more ranks than this, whatever the error. 0 sets no limit.",
                ),
                advanced(
                    io.Int.Input(
                        "conv_rank",
                        default=0,
                        min=0,
                        max=LARGEST_RANK,
                        tooltip="A rank of its own for convolutions with a kernel (3x3). 0 treats "
                        "them as all other layers.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "cut",
                        default=0,
                        min=0,
                        max=LARGEST_RANK,
                        tooltip="For DyLoRA files: before all else, take only the first ranks. 0 "
                        "takes all.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "norms_and_biases",
                        default=True,
                        tooltip="Whether changes of norms and biases stay beside the LoRA. ComfyUI "
                        "reads them, some tools do not. What is dropped counts as error.",
                    )
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model that the adapter was made for. Needed where a "
                    "method changes a weight by what it is (DoRA, OFT, BOFT, GLoRA, (IA)^3, T-LoRA "
                    "and others), and by LoHa and LoKr on convolutions, to write their kernels.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoders, for the same reasons."
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter", tooltip="What was made."),
                io.String.Output(
                    display_name="report",
                    tooltip="Methods, ranks and size before and after, and the error.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        adapter: AdapterSet,
        to: To,
        size: str,
        rank: int,
        kept_energy: float,
        error: float,
        largest_rank: int = 0,
        conv_rank: int = 0,
        cut: int = 0,
        norms_and_biases: bool = True,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        """Returns what was made, with a report on the node."""
        most = largest_rank or None
        sizes = {
            ALL: Size(error=ALL_OF_IT.error, most=most),
            RANK: Size(rank=rank, most=most),
            ENERGY: Size(energy=kept_energy, most=most),
            ERROR: Size(error=error, most=most),
        }
        kernels = Size(rank=conv_rank) if conv_rank else None
        source = adapter.cut(cut)
        placing = placed(source, model, clip)
        wish = Conversion(to, sizes[size], kernels, norms_and_biases)
        bar = LayersBar(len(source.adapters))
        made = converted(placing.sites, source, wish, bar.step)
        said = source.notes[len(adapter.notes) :]
        text = "\n".join([conversion_report(adapter, made), *said, *placing.notes])
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(made.adapter_set, text, ui={"text": [text]})
