"""The only torch room: a model, a batched sampler, one loss file and the loops that train with it. Import it late."""
