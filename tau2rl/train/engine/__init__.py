"""The engine of the local trainer: one forward pass for training and sampling, in which shared beginnings are computed once."""
