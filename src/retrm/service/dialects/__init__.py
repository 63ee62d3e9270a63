"""Wire protocols, one file each; see `base` for what a dialect is.

`ROUTES` stands in the order in which a body is offered to the dialects of its path: SGLang's are told by their
fields, vLLM's take what is left.
"""

from retrm.service.dialects import native, openrlhf, sglang, vllm
from retrm.service.dialects.base import Route

ROUTES: tuple[Route, ...] = (
    *native.ROUTES,
    *sglang.ROUTES,
    *vllm.ROUTES,
    *openrlhf.ROUTES,
)

__all__ = ["ROUTES", "Route"]
