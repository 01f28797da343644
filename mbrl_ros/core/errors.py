"""The errors a user can meet; each says what was read, what was found and what to try next."""


class MbrlError(Exception):
    """A refusal that a user can act on: its text is shown without a traceback."""


class SpecError(MbrlError):
    """A YAML file, or a name in one, is not what the code accepts."""


class BagError(MbrlError):
    """A bag cannot be read, or cannot train this robot."""


class ModelError(MbrlError):
    """A model file is corrupt, or was made for another robot."""


class ProviderError(MbrlError):
    """The requested execution provider is not available."""


class PlanningError(MbrlError):
    """A plan cannot be made from the costs that came back, or not within the period."""


class ObservationError(MbrlError):
    """A message does not hold what the robot spec promises."""
