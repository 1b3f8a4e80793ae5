"""Weights trained elsewhere: read as tensors, never as code."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from tersor.errors import BadInput

WANTED_WEIGHTS = "a .safetensors file, or a state dict saved with torch.save(model.state_dict(), ...)"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a state dict read with weights_only=True.

    Raises:
        BadInput: missing, damaged, a pickle with code in it, no state dict, or a weight that is NaN.
    """
    if not path.is_file():
        raise BadInput("the weights are missing", where=path, todo="Check `weights` of the load stage")
    state = _read_state(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BadInput(
            "the weights file is no state dict",
            got=type(state).__name__,
            wanted=WANTED_WEIGHTS,
            where=path,
        )
    tensors = {k: v.detach().cpu().float() if v.is_floating_point() else v for k, v in state.items()}
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BadInput(
            "a weight is not a number",
            got=f"NaN or infinity in {', '.join(broken[:3])}",
            where=path,
            todo="Its training diverged: take an earlier checkpoint",
        )
    return tensors


def _read_state(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"(?i)unsupported (?:global: )?(?:GLOBAL )?([\w.]+(?: \d+)?)", str(error))
        raise BadInput(
            "the weights file holds code, not only tensors; it was not executed",
            got=match.group(1) if match else "a pickle of objects",
            wanted=WANTED_WEIGHTS,
            where=path,
            todo="Save the state dict alone, better as .safetensors",
        ) from error
    except Exception as error:
        raise BadInput(
            "the weights cannot be read",
            got=str(error).splitlines()[0][:200],
            wanted=WANTED_WEIGHTS,
            where=path,
            todo="Get the file again",
        ) from error
