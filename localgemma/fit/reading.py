"""How fast a model read and wrote on this machine: kept from one load to the next, for forecasts of files and for plans."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from localgemma import measured

if TYPE_CHECKING:
    from localgemma.engine import EngineInfo
    from localgemma.fit.explain import Decision
    from localgemma.options import LoadOptions


def speeds(decision: Decision | None) -> tuple[float, float]:
    """Tokens of words and of pictures that this model read a second here before; 0 where it never did."""
    if decision is None:
        return 0.0, 0.0
    return measured.load(decision.machine.key).reading.get(decision.way.candidate.name, (0.0, 0.0))


def keep(decision: Decision | None, info: EngineInfo, loaded: LoadOptions) -> None:
    """Keep the speeds that were seen; what was not seen stays as it was.

    That of writing corrects the next plan, unless it was `loaded` with other layers than planned.
    """
    if decision is None:
        return
    if info.decode_speed and decision.way.load.gpu_layers == loaded.gpu_layers:
        from localgemma.fit import calibrate

        calibrate.saw(decision, info.decode_speed)
    if not info.text_speed:
        return
    pair = (info.text_speed, info.picture_speed or speeds(decision)[1])
    kept = measured.load(decision.machine.key)
    measured.save(decision.machine.key, replace(kept, reading={**kept.reading, decision.way.candidate.name: pair}))
