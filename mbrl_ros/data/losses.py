"""What of a bag could not become transitions, and why: printed by whatever trains on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import MessageField
from mbrl_ros.data.samples import Samples

# A robot spec may publish a topic at half the control rate, and no slower.
SPARSE = 0.45


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
    longest_gap : (str, float, int)
        Its topic, its length [ns] and the stamp [ns] it began at; ('', 0.0, 0) without any.
    clock_jumps : int
        Places where stamps went backwards by more than one control period.
    late : dict of str to int
        Messages stamped more than a second before others that were recorded earlier, by topic.
    outside_episodes : int
        Observation messages before the first episode mark or after an end mark.
    without_command : int
        Transitions without a command of the last five control periods.
    bad_command : int
        Transitions whose command was not finite.
    without_label : int
        Transitions of which a label that the robot spec names was not reported.
    num_samples : dict of str to int
        Observations inside an episode, by topic.
    sparse : dict of str to float
        Observed topics with clearly less than one message a control period, and how many they
        have a period: the values between are interpolated.
    miscounted : (int, int), optional
        Messages that metadata.yaml counts, and messages that were found, where they differ.
    recorder_lost : dict of str to int
        Messages that the recorder itself counted as lost, by topic.
    recovered : str
        How the bag was recovered from a truncated one, '' if it was not.

    """

    bag: str
    nan_samples: dict[str, tuple[int, int]] = field(default_factory=dict)
    gaps: int = 0
    longest_gap: tuple[str, float, int] = ('', 0.0, 0)
    clock_jumps: int = 0
    late: dict[str, int] = field(default_factory=dict)
    outside_episodes: int = 0
    without_command: int = 0
    bad_command: int = 0
    without_label: int = 0
    num_samples: dict[str, int] = field(default_factory=dict)
    sparse: dict[str, float] = field(default_factory=dict)
    miscounted: tuple[int, int] | None = None
    recorder_lost: dict[str, int] = field(default_factory=dict)
    recovered: str = ''

    def count_samples(self, topic: str, fields: Sequence[MessageField], samples: Samples) -> None:
        """Count the samples of an observed topic, and those that are not finite by field."""
        self.num_samples[topic] = self.num_samples.get(topic, 0) + len(samples)
        for field_, column in zip(fields, samples.values.T, strict=True):
            bad = ~np.isfinite(column)
            if bad.any():
                first_ns = int(samples.stamps_ns[bad][0])
                count, first_ns = self.nan_samples.get(field_.name, (0, first_ns))
                self.nan_samples[field_.name] = (count + int(bad.sum()), first_ns)

    def count_gaps(self, topic: str, stamps_ns: np.ndarray, lengths_ns: np.ndarray) -> None:
        """Count the gaps of an observed topic that began at these stamps."""
        self.gaps += len(lengths_ns)
        if len(lengths_ns) and lengths_ns.max() > self.longest_gap[1]:
            longest = int(np.argmax(lengths_ns))
            self.longest_gap = (topic, float(lengths_ns[longest]), int(stamps_ns[longest]))

    def check_observed(self, fields: Sequence[MessageField]) -> None:
        """
        Check that each field of the observation was observed.

        Raises
        ------
        BagError
            If a topic has no message inside an episode, or a field no finite value.

        """
        for field_ in fields:
            number = self.num_samples.get(field_.topic, 0)
            if not number and field_.topic not in self.late:
                raise BagError(f"{self.bag}: no message on '{field_.topic}' inside an episode. "
                               f'Try: mbrl-ros bag info {self.bag}')
            if number and self.nan_samples.get(field_.name, (0, 0))[0] == number:
                raise BagError(
                    f"{self.bag}: '{field_.name}' ({field_.topic}, {field_.path}) is never a "
                    'finite number. Does the robot publish it? Try another path in the robot '
                    'spec.')

    def find_sparse(self, num_steps: int) -> None:
        """Note the topics of which much less was observed than one message a step."""
        num_steps += self.without_command + self.bad_command + self.without_label
        self.sparse = {topic: number / num_steps for topic, number in self.num_samples.items()
                       if number < SPARSE * num_steps}

    def describe(self) -> list[str]:
        """Return one line a kind of loss, none for a bag that lost nothing."""
        lines = []
        if self.recovered:
            lines.append(f'was recovered from a truncated recording: {self.recovered}')
        for topic, count in self.recorder_lost.items():
            lines.append(f'the recorder lost {_count(count, "message")} on {topic}')
        if self.miscounted:
            lines.append(f'metadata.yaml counts {_count(self.miscounted[0], "message")} of the '
                         f"robot's topics, {self.miscounted[1]} were found")
        for topic, share in self.sparse.items():
            lines.append(f'{topic} was observed {share:.2g} times a control period: the values '
                         'between are interpolated; publish faster, or lower control_rate_hz in '
                         'the robot spec')
        for name, (count, first_ns) in self.nan_samples.items():
            lines.append(f"{_count(count, 'sample')} of '{name}' not finite, dropped; "
                         f'first at stamp {first_ns / 1e9:.3f} s')
        if self.gaps:
            lines.append(f'{_count(self.gaps, "gap")} in the observations; '
                         'the episode is split there')
        if self.clock_jumps:
            lines.append(f'clock went backwards {_count(self.clock_jumps, "time")}; '
                         'the episode is split there')
        for topic, count in self.late.items():
            lines.append(f'{_count(count, "message")} on {topic} dropped: stamped more than a '
                         'second before what was recorded earlier; are all stamps of one clock?')
        if self.outside_episodes:
            lines.append(f'{_count(self.outside_episodes, "observation")} outside any episode')
        if self.without_command:
            lines.append(f'{_count(self.without_command, "transition")} dropped without a command '
                         'of the last five periods')
        if self.bad_command:
            lines.append(f'{_count(self.bad_command, "transition")} dropped with a command that '
                         'is not finite')
        if self.without_label:
            lines.append(f'{_count(self.without_label, "transition")} dropped without a reward or '
                         'termination reported')
        return [f'{self.bag}: {line}' for line in lines]


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')
