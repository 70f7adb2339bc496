"""What one visitor may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds on files and live sessions. All times are in seconds.

    Raises:
        ValueError: for a bound that is not above 0.
    """

    megabytes: float = 50
    """Of a file."""
    seconds: float = 300
    """Of sound in a file. Of many channels or a high rate, fewer: see `samples`."""
    upload_seconds: float = 60
    """Until the file has to be there."""
    work_seconds: float = 120
    """That enhancing a file may take."""
    jobs: int = 2
    """Files at once; further ones are refused."""
    sessions: int = 4
    """Live sessions at once."""
    session_seconds: float = 900
    """Of a live session."""
    idle_seconds: float = 10
    """After which a live session that sends nothing ends."""
    ahead_seconds: float = 5
    """Of sound that a live session may send faster than it sounds."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name} = {value!r}: expected a number above 0")

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return round(self.megabytes * 1e6)

    @property
    def samples(self) -> int:
        """Of a file, over all its channels: `seconds` of stereo at 48 kHz. Bounds the memory."""
        return round(self.seconds * 2 * 48_000)
