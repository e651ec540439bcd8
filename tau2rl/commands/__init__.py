"""One file a group of commands: options -> config -> what carries it out. Heavy rooms are imported inside the commands."""
