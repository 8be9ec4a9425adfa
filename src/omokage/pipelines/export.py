"""An avatar's network as a file for other runtimes. MAIN: `export_model`."""

from __future__ import annotations

from pathlib import Path

from omokage.avatar.bundle import Avatar
from omokage.avatar.container import is_trained_here
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.render.export import export_onnx
from omokage.render.paper_export import export_paper_onnx
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.release import Released, check_writable, release_model

SUFFIX = ".onnx"


def export_model(avatar: Path, output: Path, *, purpose: str | None = None) -> Released:
    """Write the network of an avatar that was made here as ONNX, whose pictures carry no label, mark or origin.

    purpose: as in `reenact`; the consent decides, and the audit log has a row for what left or was refused. Raises
    BundleError, ConsentError, OutputError.
    """
    avatar, output = Path(avatar), Path(output)
    check_writable(output, (SUFFIX,), inputs=[avatar])
    person = PaperAvatar.load(avatar) if is_trained_here(avatar) else Avatar.load(avatar)
    made = person.provenance if isinstance(person, Avatar) else person.origin
    media = getattr(made, "recording_sha256", "")
    permitted = permit(Use(media, purpose), name=getattr(made, "recording_name", avatar.name))

    def write(part: Path) -> None:
        if isinstance(person, Avatar):
            export_onnx(person.generator, part)
        else:
            export_paper_onnx(person, part)

    return release_model(write, output, kind="onnx", avatar=media, consent=permitted.consent.id)
