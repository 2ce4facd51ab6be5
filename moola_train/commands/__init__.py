"""The commands of moola-train, a module each: parse, call one function, print."""
