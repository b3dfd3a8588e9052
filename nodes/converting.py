"""Convert Adapter: makes a LoRA of any adapter, of another size, or whole differences."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..algorithms.editing.conversion import Conversion, To, conversion_report, converted
from ..algorithms.formats.parse import AdapterSet
from .host.messages import LayersBar, show_text
from .inputs import ALL, LARGEST_RANK, SIZES, chosen_size, size_inputs, size_limits
from .placing import placed
from .schema import advanced
from .sockets import AdapterSocket

TO: list[To] = ["LoRA", "full difference", "as it is"]


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
                *size_inputs(
                    of="Of the LoRAs.",
                    others="all of it: as many ranks as it takes to lose nothing.",
                    choices=[ALL, *SIZES],
                ),
                *size_limits(),
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
        wished = chosen_size(
            size,
            rank=rank,
            kept_energy=kept_energy,
            error=error,
            largest_rank=largest_rank,
            conv_rank=conv_rank,
        )
        source = adapter.cut(cut)
        placing = placed(source, model, clip)
        wish = Conversion(to, wished, norms_and_biases)
        made = converted(placing.sites, source, wish, LayersBar)
        said = source.notes[len(adapter.notes) :]
        text = "\n".join([conversion_report(adapter, made), *said, *placing.notes])
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(made.adapter_set, text, ui={"text": [text]})
