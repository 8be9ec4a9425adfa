"""The hidden notice of the label profile `cn`: the metadata field AIGC (GB 45438-2025, appendix E; TC260-PG-20258A).

A JSON text under the name AIGC in clips, and in pictures as the XMP property TC260:AIGC.
"""

from __future__ import annotations

import json
from typing import Final

from omokage.trust.identity import identity
from omokage.trust.label import read_label

FIELD: Final = "AIGC"
NAMESPACE: Final = "http://www.tc260.org.cn/ns/AIGC/1.0/"
PROFILE: Final = "cn"
_GENERATED: Final = "1"  # it is; 2 and 3 are for what may be, or is suspected


def aigc_of(label: str | None, render_id: str | None) -> str:
    """The field's text for a generated file that bears the profile's label, or nothing for another label.

    The producer is the organization of the signing certificate, the number that of the render. Raises what `identity`
    raises.
    """
    if label is None or read_label(label).profile != PROFILE:
        return ""
    producer = identity().organization
    said = {
        "Label": _GENERATED,
        "ContentProducer": producer,
        "ProduceID": render_id or "",
        "ReservedCode1": "",
        "ContentPropagator": producer,
        "PropagateID": render_id or "",
        "ReservedCode2": "",
    }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))
