"""What of a bag could not become transitions, and why: printed by whatever trains on it."""

from dataclasses import dataclass, field


@dataclass
class Losses:
    """
    Counts of what one bag lost on the way to the dataset.

    Attributes
    ----------
    bag : str
        Path of the bag.
    nan_samples : dict of str to (int, int)
        Observation field to its number of non-finite samples and the stamp [ns] of the first.
    gaps : int
        Places where an observation topic was silent for longer than one and a half periods.
    clock_jumps : int
        Places where stamps went backwards by more than one control period.
    outside_episodes : int
        Observation messages before the first episode mark or after an end mark.
    without_command : int
        Transitions without a command of the last five control periods.
    bad_command : int
        Transitions whose command was not finite.
    recorder_lost : dict of str to int
        Messages that the recorder itself counted as lost, by topic.
    recovered : str
        How the bag was recovered from a truncated one, '' if it was not.

    """

    bag: str
    nan_samples: dict[str, tuple[int, int]] = field(default_factory=dict)
    gaps: int = 0
    clock_jumps: int = 0
    outside_episodes: int = 0
    without_command: int = 0
    bad_command: int = 0
    recorder_lost: dict[str, int] = field(default_factory=dict)
    recovered: str = ''

    def describe(self) -> list[str]:
        """Return one line a kind of loss, none for a bag that lost nothing."""
        lines = []
        if self.recovered:
            lines.append(f'was recovered from a truncated recording: {self.recovered}')
        for topic, count in self.recorder_lost.items():
            lines.append(f'the recorder lost {_count(count, "message")} on {topic}')
        for name, (count, first_ns) in self.nan_samples.items():
            lines.append(f"{_count(count, 'sample')} of '{name}' not finite, dropped; "
                         f'first at stamp {first_ns / 1e9:.3f} s')
        if self.gaps:
            lines.append(f'{_count(self.gaps, "gap")} in the observations; '
                         'the episode is split there')
        if self.clock_jumps:
            lines.append(f'clock went backwards {_count(self.clock_jumps, "time")}; '
                         'the episode is split there')
        if self.outside_episodes:
            lines.append(f'{_count(self.outside_episodes, "observation")} outside any episode')
        if self.without_command:
            lines.append(f'{_count(self.without_command, "transition")} dropped without a command '
                         'of the last five periods')
        if self.bad_command:
            lines.append(f'{_count(self.bad_command, "transition")} dropped with a command that '
                         'is not finite')
        return [f'{self.bag}: {line}' for line in lines]


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')
