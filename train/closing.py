"""What a callback holds is given back, however the training ends."""

from abc import ABC, abstractmethod

import lightning as L


class Closing(L.Callback, ABC):
    """Closes once training has ended; Lightning calls `teardown` only where there was no error."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held; a second call does nothing."""

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close after a training that went well."""
        self.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close after an error."""
        self.close()
