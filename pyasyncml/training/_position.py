"""Where in the data training is."""

from __future__ import annotations


class Position:
    """Where in the data training is, so that it can go on from there.

    `epoch`: epochs that have ended, in the trainer's life. `step`: steps of the epoch
    under way. `begin` and `epochs`: of the last `fit`, the epoch it began with and how
    many it was to have. `seed`: of the order of the rows.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = self.step = self.begin = self.epochs = 0

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def restore(self, state: dict[str, int]) -> None:
        for name in vars(self):
            setattr(self, name, int(state[name]))

    @property
    def interrupted(self) -> bool:
        """Whether the last `fit` has not come to its end."""
        return self.epoch < self.begin + self.epochs
