"""The models, each a page, and the registry that picks one by the architecture in config.json."""
