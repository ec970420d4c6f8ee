"""Which GPU a rank sees."""

from __future__ import annotations

import pytest

from trainer.visible import see_own_gpu

RANK_1 = {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("env", "installed", "sees"),
    [
        ({**RANK_1, "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "5"),
        ({**RANK_1, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}, 8, "GPU-b"),
        ({**RANK_1, "CUDA_VISIBLE_DEVICES": "3"}, 8, "3"),
        ({**RANK_1, "CUDA_VISIBLE_DEVICES": ""}, 8, ""),
        (RANK_1, 2, "1"),
        (RANK_1, 1, None),
        (RANK_1, 0, None),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "7", "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "3,5"),
        ({"WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "3,5"),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "3,5"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,5"}, 8, "3,5"),
        ({}, 8, None),
    ],
)
def test_a_rank_sees_the_gpu_of_its_number(env: dict[str, str], installed: int, sees: str | None) -> None:
    seen = dict(env)
    see_own_gpu(seen, lambda: installed)
    assert seen.pop("CUDA_VISIBLE_DEVICES", None) == sees
    assert seen == {name: value for name, value in env.items() if name != "CUDA_VISIBLE_DEVICES"}
