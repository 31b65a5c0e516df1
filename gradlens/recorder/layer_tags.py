"""Find what a layer does beyond its role: attention's query, key and value, gates, experts, adapters, packed weights.

Every tag has one rule. Names are used only where structure does not tell, as for query and key, which may be exchanged
in the graph. ``gradlens.run.TAGS`` says what the tags mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd

from gradlens.recorder.registered_parameters import registered_parameters

ATTENTION = {
    tag: re.compile(rf"(w_?|to_)?({words})(_?(proj|lin|linear|layer))?", re.IGNORECASE)
    for tag, words in (("query", "q|query"), ("key", "k|key"), ("value", "v|value"))
}
FUSED = re.compile(r"(w_?|to_)?(qkv|c_attn|query_key_value)(_?(proj|lin|linear|layer))?", re.IGNORECASE)
GATE = re.compile(r"(w_?)?gate(_?(proj|lin|linear|layer))?", re.IGNORECASE)
ROUTER = re.compile(r"(router|gate|gating)(_?\w+)?", re.IGNORECASE)
EXPERT = re.compile(r"(?:^|(?<=\.))(?!shared)\w*experts?(?=[_.\d]|$)", re.IGNORECASE)
ADAPTER = re.compile(r"(^|[._])(lora|dora|loha|lokr|ia3|adapters?)(_\w+)?(?=\.|$)", re.IGNORECASE)
PACKED = re.compile(r"quantized|quantlinear|[48]bit", re.IGNORECASE)


def holds_packed_weight(module: nn.Module) -> bool:
    """Return whether a module's own weight is stored as integers, as a parameter or as a buffer."""
    own = (*registered_parameters(module).items(), *module.named_buffers(recurse=False))
    return any("weight" in name and not (t.is_floating_point() or t.is_complex()) for name, t in own)


def find_tags(
    modules: Mapping[str, nn.Module], called: Collection[str], writers: Iterable[str]
) -> dict[str, list[str]]:
    """Find the tags of layers.

    Args:
        modules: Name to module.
        called: Names of the layers that ran.
        writers: Names of the layers that write to a residual stream.

    Returns:
        Name to tags; a layer without a tag is left out.
    """
    found: dict[str, list[str]] = {}

    def tag(name: str, *tags: str) -> None:
        found.setdefault(name, []).extend(tags)

    experts = {name[: hit.start()] for name in modules if (hit := EXPERT.search(name))}
    for name in _around(called):
        if name in modules:
            tag(name, "block")
    for name, part in _attention_parts(modules):
        tag(name, part)
    for name in writers:
        tag(name, "residual")
    for name, module in modules.items():
        head, _, last = _split(name)
        if isinstance(module, nn.MultiheadAttention) or FUSED.fullmatch(last):
            tag(name, "attention")
        if ROUTER.fullmatch(last) and head in experts:
            tag(name, "router")
        elif GATE.fullmatch(last):
            tag(name, "gate")
        if EXPERT.search(name) or _holds_batch_of_weights(module):
            tag(name, "expert")
        if ADAPTER.search(name):
            tag(name, "adapter")
        if name not in called and _holds_only_vectors(module):
            tag(name, "constant")
        if holds_packed_weight(module) or PACKED.search(type(module).__name__):
            tag(name, "packed")
    return found


def _split(name: str) -> tuple[str, str, str]:
    """Return a name's beginning up to the last dot, the dot, and the rest, without what adapters add at its end."""
    bare = re.sub(r"\.(base_layer|linear|original_module)$", "", name)
    head, dot, last = bare.rpartition(".")
    return head + dot, dot, last


def _around(names: Collection[str]) -> set[str]:
    """Return the names of the modules that contain these."""
    found: set[str] = set()
    for name in names:
        head = name.rpartition(".")[0]
        while head and head not in found:
            found.add(head)
            head = head.rpartition(".")[0]
    return found | {"(model)"} if len(names) > 1 else found


def _attention_parts(modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    """Return the layers that make query, key and value, each with its tag, where all three have the same parent."""
    by_parent: dict[str, dict[str, str]] = {}
    for name in modules:
        head, _, last = _split(name)
        for tag, pattern in ATTENTION.items():
            if pattern.fullmatch(last):
                by_parent.setdefault(head, {})[tag] = name
    return [(name, tag) for parts in by_parent.values() if len(parts) == 3 for tag, name in parts.items()]


def _holds_only_vectors(module: nn.Module) -> bool:
    """Return whether each of a module's own parameters is a vector or a number, and it has some."""
    own = list(registered_parameters(module).values())
    return bool(own) and all(parameter.numel() == max(parameter.shape, default=1) for parameter in own)


def _holds_batch_of_weights(module: nn.Module) -> bool:
    """Return whether a module owns matrices in one tensor, (experts, in, out), and is no layer of torch's."""
    known = isinstance(module, _ConvNd | nn.Bilinear) or "conv" in type(module).__name__.lower()
    return not known and any(p.ndim == 3 and min(p.shape) > 1 for p in registered_parameters(module).values())
