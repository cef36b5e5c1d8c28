"""What each option changes in a layer, one idea to a module; ``models/layer_specs.py`` puts them together."""
