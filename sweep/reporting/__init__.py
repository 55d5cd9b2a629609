"""What is read: the live table, one line per trial, tables of rows, the words at the end.

Read only, and light: rich is imported where something is drawn, and nothing heavier at all.

    formats    numbers, durations, times and spark lines as people read them
    progress   what a display knows of a running search
    live       the table on a terminal
    lines      one line per trial that can be grepped
    display    which of the two
    tables     rows as table, JSON or CSV
    summary    the end of a search, and what to type next
"""
