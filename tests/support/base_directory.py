"""Makes a folder that ComfyUI takes as its base directory, with the pack installed in it."""

import hashlib
import os
import shutil
from pathlib import Path
from types import ModuleType

import small_world

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".host" / "cache"
HOST_BASE = ROOT / ".host" / "base"
CHECKPOINT_NAME = "small_sd15.safetensors"
TUNED_NAME = "tuned_sd15.safetensors"
EXAMPLE_NAMES = {
    "v1-5-pruned-emaonly-fp16.safetensors": CHECKPOINT_NAME,
    "your_tuned_checkpoint.safetensors": TUNED_NAME,
    "your_adapter.safetensors": "locon.safetensors",
    "your_other_adapter.safetensors": "norm.safetensors",
}
"""What the example workflows call a user's files, and the files here that stand for them."""


def make_base_directory(path: Path) -> None:
    """Makes the folders, and installs the pack, the example workflows and the small checkpoint.

    What is already there stays.
    """
    for folder in ("models/checkpoints", "models/loras", "custom_nodes", "input", "output"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    link_pack(path / "custom_nodes" / "anyadapter")
    workflows = path / "user" / "default" / "workflows"
    workflows.mkdir(parents=True, exist_ok=True)
    for workflow in (ROOT / "example_workflows").glob("*.json"):
        text = example_workflow(workflow.stem)
        (workflows / workflow.name).write_text(text, encoding="utf-8")
    checkpoint = path / "models" / "checkpoints" / CHECKPOINT_NAME
    checkpoint.unlink(missing_ok=True)
    link_or_copy(cached_checkpoint(), checkpoint)


def example_workflow(name: str) -> str:
    """Returns an example workflow as it ships, with the names of files that are here."""
    text = (ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8")
    for theirs, ours in EXAMPLE_NAMES.items():
        text = text.replace(theirs, ours)
    return text


def link_pack(link: Path) -> None:
    """Makes `link` show the pack's root, so that a change of the source needs no copying."""
    if link.exists():
        return
    link.unlink(missing_ok=True)  # a link to a checkout that has moved
    if os.name == "nt":
        import _winapi

        # A junction, since symbolic links need a privilege on Windows.
        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def cached_checkpoint() -> Path:
    """Returns the small checkpoint, made anew only when the code that makes it has changed."""
    path = CACHE / f"small_sd15-{_digest(small_world)}.safetensors"
    if not path.exists():
        small_world.make_small_checkpoint(path)
    return path


def make_tuned_checkpoint(path: Path) -> None:
    """Puts the small checkpoint with a LoCon in its weights into a base directory."""
    from made_adapters import bake

    target = path / "models" / "checkpoints" / TUNED_NAME
    if not target.exists():
        bake("locon", cached_checkpoint(), target, strength_model=1.0, strength_clip=1.0)


def cached_large_checkpoint() -> Path:
    """Returns an SD 1.5 of real size (2 GB), made anew only when the code that makes it changes."""
    path = CACHE / f"large_sd15-{_digest(small_world)}.safetensors"
    if not path.exists():
        small_world.make_large_checkpoint(path)
    return path


def make_example_adapters(path: Path) -> list[str]:
    """Puts one adapter of each method into a base directory, and returns their methods.

    The files are called like their methods: `lora.safetensors` and so on. What PEFT saves with a
    configuration beside it is in a folder of that name.
    """
    # Here, as they need packages that a server alone does not.
    import made_adapters
    import made_by_lycoris
    import made_by_peft
    import making
    import written_by_hand

    makers = (making, made_by_lycoris, made_by_peft, written_by_hand, made_adapters)
    cache = CACHE / f"adapters-{_digest(small_world, *makers)}"
    for method in made_adapters.METHODS:
        made_adapters.put_adapter(method, cached_checkpoint(), cache)
    shutil.copytree(cache, path / "models" / "loras", dirs_exist_ok=True)
    return list(made_adapters.METHODS)


def make_example_pictures(path: Path) -> None:
    """Puts what the workflow train_lora trains on into the input folder: pictures with captions."""
    from PIL import ImageEnhance

    from lighthouse import draw_lighthouse, write_captioned

    folder = path / "input" / "my_pictures"
    for time, brightness in {"by day": 1.0, "at dusk": 0.7}.items():
        picture = ImageEnhance.Brightness(draw_lighthouse()).enhance(brightness)
        write_captioned(folder / f"{time}.png", picture, f"a lighthouse {time}")


def _digest(*sources: ModuleType) -> str:
    digest = hashlib.sha256()
    for module in sources:
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:12]


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a large file at another place, without a second copy of it where the disk allows."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
