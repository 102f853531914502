from hypothesis import settings

settings.register_profile("laws", max_examples=10, derandomize=True, deadline=None)
settings.load_profile("laws")
