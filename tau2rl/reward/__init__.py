"""From tau2's verdicts to what a learner sees: reward info -> Grade -> Score -> advantages. Pure: no clock, file or network."""
