"""What the page asks the pack over HTTP; each module of this folder has the routes of one subject.

Anyone on the network may ask: a name from outside is looked up in the host's LoRA folders and leads
nowhere else, GET changes nothing of the user's, and what is wrong is answered as
`{"error": sentence}` with a status code.
"""

from . import blocks, library, presets, schedule, training


def register_routes() -> None:
    """Makes the host's server answer our routes."""
    blocks.register()
    library.register()
    presets.register()
    schedule.register()
    training.register()
