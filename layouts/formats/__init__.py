"""One file a storage format; the registry finds every ``Format`` class in here."""
