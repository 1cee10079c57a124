"""How many examples Hypothesis draws in tests that fuzz whole readers."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

MANY = "fuzz"  # pytest --hypothesis-profile=fuzz

settings.register_profile(MANY, max_examples=10_000)


def fuzzed(examples: int) -> settings:
    """So many examples in the suite, and 10,000 with ``--hypothesis-profile=fuzz``."""
    return settings(
        max_examples=max(examples, settings.default.max_examples),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
