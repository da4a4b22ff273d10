"""Settings of every test."""

from hypothesis import HealthCheck, settings

# Examples are derived from the test alone, so that a failure is the same one everywhere; no deadline, because the
# machine may be busy.
settings.register_profile(
    "eddy", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("eddy")
