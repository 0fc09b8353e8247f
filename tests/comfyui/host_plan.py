"""Run by ComfyUI's interpreter, not by pytest: the plan node, which opens headers and no model.

Prints one JSON object of measurements; ``test_plan.py`` holds the expectations.
"""

from host import report, room  # first: it sets ComfyUI up

# isort: split
import comfy.model_management
import torch

node = room("nodes.plan").HappyHorsePlan
schema = node.define_schema()
inputs = {item.id: item for item in schema.inputs}
GIVEN = {
    "model_name": "published size",
    "super_resolution_name": "published size",
    "text_encoder_name": "published size",
    "variant": "distilled",
    "precision": "fp8",
    "width": 448,
    "height": 256,
    "length": 125,
    "super_resolution": "1080p",
    "gpu_memory_gb": 16.0,
}


def run(**changed):
    found = node.execute(**{**GIVEN, **changed})
    return found.result[0], found.ui.as_dict()["text"][0]


def refusal(**changed):
    try:
        run(**changed)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


tiny = next(name for name in inputs["model_name"].options if "distilled" in name)
text, shown = run()
report(
    {
        "text": text,
        "shown": shown,
        "tiny": run(model_name=tiny, precision="auto", super_resolution="none")[0],
        "no card": run(gpu_memory_gb=0.0)[0].splitlines()[0] if not torch.cuda.is_available() else None,
        "loaded": len(comfy.model_management.current_loaded_models),
        "limits": {
            name: [inputs[name].min, inputs[name].max]
            for name in ("width", "height", "length", "gpu_memory_gb")
        },
        "required": sorted(inputs) == sorted(GIVEN),
        "refused": [refusal(width=450), refusal(length=100), refusal(gpu_memory_gb=-1.0)],
    }
)
