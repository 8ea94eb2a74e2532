"""For pytest's ``-p``: Hypothesis is content with the first failure, however large it is."""

from hypothesis import Phase, settings

PROFILE = "no-shrinking"

settings.register_profile(PROFILE, phases=(Phase.explicit, Phase.generate), print_blob=False)
