"""One of several processes of a training whose weights are sharded (FSDP2), on this machine's processors.

accelerate shards on accelerators only; told that processors are one, it takes the same path over gloo.

    python tests/sharded.py FOLDER      with RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT set
"""

import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import DistributedType

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    from trained import SHARED_RUN, options, pair_table, train

    folder = Path(sys.argv[1])
    table = pair_table(folder)
    train(
        *(folder, folder / "lm", table, "sharded"),
        options=options(**SHARED_RUN, device_batch=2),
        device="cuda",
    )


if __name__ == "__main__":
    main()
