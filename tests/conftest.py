from hypothesis import settings

# A loaded machine is no failure.
settings.register_profile("lorabench", deadline=None)
settings.load_profile("lorabench")
