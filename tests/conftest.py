"""Fixtures, and the network block."""

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """An untrained pocket VLM, small enough that two training steps take a second."""
    from vlaa_lib import pocket

    recipe = pocket.Recipe(
        hidden=64, layers=2, vision_hidden=64, vision_layers=1, vocabulary=512
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    processor = pocket.build_processor(recipe)
    model = pocket.build_model(recipe, processor.tokenizer)
    pocket.save("instruct", model, processor, folder, recipe, log=[])
    return folder


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory):
    """A folder with two records of each micro source (below `images`), and the records."""
    from vlaa_lib import microworld

    folder = tmp_path_factory.mktemp("micro")
    return folder, microworld.write_split(folder, list(microworld.SOURCES), "dev", 2)
