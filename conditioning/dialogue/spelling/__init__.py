"""Numbers, dates, times and money as a speaker says them, one file per language."""
