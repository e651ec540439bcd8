"""One file a stage, top to bottom: `run(config, folder, progress) -> Result`. A recipe joins packages; what they do is theirs."""
