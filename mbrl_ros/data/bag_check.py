"""Whether a bag can train a robot: what is wrong with it, and the dataset that it yields."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_ros.core.errors import BagError
from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.data.bag_reader import Progress
from mbrl_ros.data.dataset import load_dataset
from mbrl_ros.data.health import examine
from mbrl_ros.data.message_checks import Finding


@dataclass(frozen=True)
class Verdict:
    """
    What a bag is worth for a robot.

    Attributes
    ----------
    bag : str
        Its path.
    problems : tuple of Finding
        Those of `health.examine` that are not ok; one that is bad makes training impossible.
    losses : tuple of str
        What did not become transitions, a line each.
    transitions, episodes : int
        Of the dataset.
    seconds : float
        Robot time of the transitions [s].

    """

    bag: str
    problems: tuple[Finding, ...]
    losses: tuple[str, ...] = ()
    transitions: int = 0
    episodes: int = 0
    seconds: float = 0.0

    @property
    def can_train(self) -> bool:
        """Whether a model can be trained on this bag."""
        return all(problem.level != 'bad' for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return vars(self) | {'can_train': self.can_train,
                             'problems': [vars(problem) for problem in self.problems]}


def check_bag_for(bag: Path, robot: RobotSpec, namespace: str = '',
                  progress: Progress | None = None) -> Verdict:
    """
    Check a bag; parameters as of `load_dataset`. A bag that cannot be read is a verdict, too.

    The dataset is cached: training on the bag afterwards does not read it again.
    """
    def part(first: float, share: float) -> Progress | None:
        if progress is None:
            return None
        return lambda path, done, total: progress(
            path, round(1000 * (first + share * done / max(total, 1))), 1000)
    problems: list[Finding] = []
    try:
        health = examine(bag, robot, namespace, part(0.0, 0.6))
        problems = [finding for finding in health.findings if finding.level != 'ok']
        dataset = load_dataset([bag], robot, namespace, part(0.6, 0.4))
    except BagError as error:
        if all(problem.level != 'bad' for problem in problems):
            problems.append(Finding('training', 'bad', str(error)))
        return Verdict(str(bag), tuple(problems))
    prefix = f'{bag}: '
    return Verdict(str(bag), tuple(problems),
                   tuple(line.removeprefix(prefix) for line in dataset.describe_losses()),
                   dataset.num_transitions, len(dataset.episodes), dataset.seconds)
