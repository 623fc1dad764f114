from hypothesis import settings

# A shared machine may be slow for a moment; how long an example took says nothing about the code.
settings.register_profile("errorbar", deadline=None)
settings.load_profile("errorbar")
