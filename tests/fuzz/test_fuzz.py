"""A short campaign with a fixed seed; the long one is `make fuzz`."""

from pathlib import Path

from campaign import run


def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """Seven seconds of damaged requests: the oracles are right, nothing internal fails, everything comes back."""
    report = run(tmp_path, 7.0, seed=1)
    assert report.tally.num_thrown > 500
    assert report.num_checked_steps > 200
    assert report.num_checked_texts > 2
    assert report.num_checked_sequence_steps > 50
    # Requests of every kind were carried out and refused.
    assert {"Stream.step", "Stream.open", "Stream.attach", "Step", "Infer", "Generate"} <= set(report.tally.thrown)
    assert {"ModelStreamInfer", "ModelInfer"} <= set(report.tally.thrown)
    assert {"ok", "FENCED", "MALFORMED_MESSAGE", "POSITION_AHEAD", "SESSION_CLOSED"} <= set(report.tally.reasons)
