"""The GRPO example trains the pocket model a step, and its rewards read the answers."""

from pathlib import Path

import pytest

pytest.importorskip("trl")
pytest.importorskip("datasets")

from examples.grpo import main


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_a_step_is_trained_and_the_rewards_say_what_they_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(1, str(tmp_path))
    assert "iou_reward was above zero for" in capsys.readouterr().out
    assert {"vpp.safetensors", "vpp_config.json"} <= {path.name for path in tmp_path.iterdir()}
