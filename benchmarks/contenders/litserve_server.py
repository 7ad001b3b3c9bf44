"""The server that litserve_http.py asks: `FILE PORT ROWS`, until it is terminated."""

import sys
from typing import Any

# No annotations as strings here: LitServe reads those of decode_request.
import litserve  # type: ignore[import-not-found]
import torch

BATCH_TIMEOUT = 0.001


class Embedding(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.module = torch.jit.load(self.path)

    def decode_request(self, request: dict[str, Any]) -> list[int]:
        return list(request["ids"])

    def batch(self, inputs: list[list[int]]) -> Any:
        longest = max(map(len, inputs))
        together = torch.zeros((2, len(inputs), longest), dtype=torch.int64)
        for row, ids in enumerate(inputs):
            together[0, row, : len(ids)] = torch.tensor(ids)
            together[1, row, : len(ids)] = 1
        return together

    def predict(self, together: Any) -> Any:
        with torch.inference_mode():
            return self.module(together[0], together[1])

    def unbatch(self, output: Any) -> list[list[float]]:
        return list(output.tolist())

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"embedding": output}


def main(path: str, port: int, rows: int) -> None:
    api = Embedding(path, max_batch_size=rows, batch_timeout=BATCH_TIMEOUT)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
