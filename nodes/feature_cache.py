"""A CLIP whose text features come from disk, and whose weights are read only for words that are not there."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io, ui

from ..conditioning.feature_cache import FeatureCache, feature_key, size_limit

# What others may add to a patcher; where one of these is not as it was loaded, its features are its own.
CHANGES = (
    "patches",
    "object_patches",
    "weight_wrapper_patches",
    "hook_patches",
    "forced_hooks",
    "current_hooks",
    "injections",
    "additional_models",
    "wrappers",
    "model_options",
    "load_device",
)
ReadTokens = Callable[[dict], tuple[list[int], dict]]


def cache_folder() -> Path:
    """In the user's folder: it stays when models are moved and ComfyUI is updated."""
    return Path(folder_paths.get_user_directory()) / "happyhorse" / "text_features"


def open_cache() -> FeatureCache:
    """The cache of this ComfyUI, with the limit that the environment says."""
    return FeatureCache(cache_folder(), size_limit(os.environ))


class EncoderWeights:
    """Where CLIPs get the encoder itself: read when it is needed, let go of when the host unloads it.

    Between two prompts it stays where it is, so that a positive and a negative read it once. When the host
    takes it off the card to make room, its copy in memory goes too: it can be read again.
    """

    def __init__(self, identity: str, read: Callable[[], tuple[comfy.sd.CLIP, str]]):
        self.identity = identity  # see conditioning.feature_cache.encoder_identity
        self._read = read  # also gives the identity again: by then the file may be another
        self.held: comfy.sd.CLIP | None = None
        self._last: Callable[[], comfy.sd.CLIP | None] = lambda: None
        _ALL.add(self)

    def get(self) -> comfy.sd.CLIP:
        """The encoder as the host has it; ``identity`` is then that of what was read."""
        if self.held is None:
            self.held = self._last() or self._fresh()
        return self.held

    def let_go(self, patcher) -> None:
        """The host has unloaded ``patcher``: forget the weights, unless a patched CLIP lives on them."""
        clip, self.held = self.held, None
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is patcher:
                # The host looks at the patcher once more; its record of it is what goes next.
                loaded.happyhorse_clip = clip

    def _fresh(self) -> comfy.sd.CLIP:
        clip, self.identity = self._read()
        ours = weakref.ref(self)  # a plain reference would be a ring, and outlive the CLIP

        def unloaded(patcher, unpatch_all):
            if unpatch_all and (source := ours()):
                source.let_go(patcher)

        clip.patcher.add_callback(CallbacksMP.ON_DETACH, unloaded)
        self._last = weakref.ref(clip)
        return clip


_ALL: weakref.WeakSet[EncoderWeights] = weakref.WeakSet()


def let_go_of_encoders() -> None:
    """Free the encoders that run on the CPU, where the host never asks for memory back."""
    for source in list(_ALL):
        if source.held and comfy.model_management.is_device_cpu(source.held.patcher.load_device):
            source.held = None


class CachedClip(comfy.sd.CLIP):
    """The host's CLIP; ``cache`` None encodes each time. One that others have changed never meets the cache."""

    def __init__(
        self, source: EncoderWeights, tokenizer, cache: FeatureCache | None, read_tokens: ReadTokens
    ):
        super().__init__(no_init=True)
        self.source, self.tokenizer, self.cache, self.read_tokens = source, tokenizer, cache, read_tokens
        self.layer_idx = self.apply_hooks_to_conds = None
        self.use_clip_schedule = False
        self.tokenizer_options = {}
        self._loaded = self._patcher = self._module = None

    @property
    def patcher(self):
        """This CLIP's own patcher; who asks gets the weights read, and keeps them while the CLIP lives."""
        if self._patcher is None:
            if _is_asked_for_its_size(sys._getframe(1)):
                if self.source.held is None:
                    raise AttributeError("no weights were read")
                return self.source.held.patcher
            self._loaded = self.source.get()
            self._patcher = self._loaded.patcher.clone()
        return self._patcher

    @patcher.setter
    def patcher(self, patcher):
        self._patcher = patcher

    @property
    def cond_stage_model(self):
        if self._module is not None:
            return self._module
        return self.source.get().cond_stage_model if self._patcher is None else self._patcher.model

    @cond_stage_model.setter
    def cond_stage_model(self, module):
        self._module = module

    def clone(self, disable_dynamic=False):
        clip = CachedClip(self.source, self.tokenizer, self.cache, self.read_tokens)
        clip.layer_idx, clip.use_clip_schedule = self.layer_idx, self.use_clip_schedule
        clip.apply_hooks_to_conds = self.apply_hooks_to_conds
        clip.tokenizer_options = self.tokenizer_options.copy()
        clip._module = self._module
        if self._patcher is not None or disable_dynamic:
            clip._patcher = self.patcher.clone(disable_dynamic=disable_dynamic)
            clip._loaded = self._loaded
        return clip

    def is_dynamic(self):
        patcher = self._patcher or (self.source.held and self.source.held.patcher)
        return patcher is None or patcher.is_dynamic()  # without weights there is nothing to free

    def encode_from_tokens_scheduled(self, tokens, unprojected=False, add_dict={}, show_pbar=True):  # noqa: B006
        if self._is_changed():
            return super().encode_from_tokens_scheduled(tokens, unprojected, add_dict, show_pbar)
        found = self.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return [[found.pop("cond"), {**found, **add_dict}]]

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        if self._is_changed():
            return super().encode_from_tokens(tokens, return_pooled, return_dict)
        ids, extras = self.read_tokens(tokens)
        rows = self.cache and self.cache.get(feature_key(self.source.identity, ids))
        if rows is None:
            cond = self.source.get().encode_from_tokens(tokens)
            if self.cache:
                self.cache.put(feature_key(self.source.identity, ids), cond[0])
        else:
            cond = rows[None].to(comfy.model_management.intermediate_device())
        if return_dict:
            out = {"cond": cond, "pooled_output": None, **extras}
            self.add_hooks_to_dict(out)
            return out
        return (cond, None) if return_pooled else cond

    def _is_changed(self) -> bool:
        if self._module is not None:
            return True
        if self._patcher is None:
            return False
        if self._loaded is None or self._patcher.model is not self._loaded.patcher.model:
            return True
        theirs = self._loaded.patcher
        return any(getattr(self._patcher, name, None) != getattr(theirs, name, None) for name in CHANGES)


def _is_asked_for_its_size(frame) -> bool:
    """Whether the host only wants to know, short of memory, if a node's result holds a model.

    It asks by getattr(result, "patcher"), which of all moments would be the worst to read 18 GB in.
    """
    question = getattr(comfy.model_patcher, "is_model_patcher_output", None)
    return question is not None and frame.f_code is question.__code__


class HappyHorseClearTextCache(io.ComfyNode):
    """Remove every stored text feature."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseClearTextCache",
            display_name="HappyHorse Clear Text Cache",
            category="HappyHorse/loaders",
            description="Removes the text features that HappyHorse Text Encoder Loader keeps on disk.",
            search_aliases=["text features", "prompt cache", "delete cache"],
            inputs=[],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls):
        return time.time()  # it has no inputs, and runs each time all the same

    @classmethod
    def execute(cls) -> io.NodeOutput:
        cache = open_cache()
        gone, left = cache.clear(), cache.size()
        report = f"Prompts removed from {cache.folder}: {gone.entries} ({gone.bytes / 1e6:.1f} MB)."
        if left.entries:
            report += f" {left.entries} could not be removed; is another program reading them?"
        return io.NodeOutput(report, ui=ui.PreviewText(report))


NODES = [HappyHorseClearTextCache]
