"""Pictures of what widths cost and give, and one page with all of them. Needs ``slimse[train]``."""

from .figures import draw_front, draw_scatter, draw_shares, draw_trace
from .page import write_report
from .trace import DropEffect, Trace, drop_effect, trace_drop

__all__ = [
    "DropEffect",
    "Trace",
    "draw_front",
    "draw_scatter",
    "draw_shares",
    "draw_trace",
    "drop_effect",
    "trace_drop",
    "write_report",
]
