"""ComfyUI and the pack in one process, without a server, for the host_*.py programs beside this file.

Their arguments are CHECKOUT PACK MODELS WORK: ComfyUI is imported from CHECKOUT and the pack from the folder
PACK as ComfyUI does it, the model set is in MODELS, and files may be written in WORK.
"""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

CHECKOUT, PACK, MODELS, WORK = map(Path, sys.argv[1:5])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(CHECKOUT))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import folder_paths  # noqa: E402

folder_paths.set_user_directory(str(WORK / "user"))  # not the checkout's

import nodes as stock  # noqa: E402

for kind in ("diffusion_models", "text_encoders", "vae"):
    folder_paths.add_model_folder_path(kind, str(MODELS / kind))
folder_paths.add_model_folder_path("loras", str(WORK))

# ComfyUI names a pack by its path; so do we, because a dotted name would hide faults of relative imports.
name = str(PACK)
spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[name])
pack = importlib.util.module_from_spec(spec)
sys.modules[name] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
OURS = {node.__name__: node for node in asyncio.run(extension.get_node_list())}


def room(path):
    return importlib.import_module(f"{name}.{path}")


def ours(node, **inputs):
    return OURS[node].execute(**inputs).result


def stock_node(node, **inputs):
    """A stock node of either style, by its class name."""
    cls = stock.NODE_CLASS_MAPPINGS.get(node) or EXTRAS[node]
    if hasattr(cls, "define_schema"):
        return cls.execute(**inputs).result
    return getattr(cls(), cls.FUNCTION)(**inputs)


def extras(*modules):
    found = {}
    for module in modules:
        for value in vars(importlib.import_module(f"comfy_extras.{module}")).values():
            if isinstance(value, type):
                found[value.__name__] = value
    return found


EXTRAS = extras("nodes_custom_sampler", "nodes_lt", "nodes_torch_compile", "nodes_audio")


def difference(actual, reference):
    """max |difference| / max |reference|"""
    actual, reference = actual.double(), reference.double()
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    return ((actual - reference).abs().max() / reference.abs().max()).item()


def report(measurements):
    """The line that the test reads."""
    sys.stdout.write("REPORT " + json.dumps(measurements) + "\n")
