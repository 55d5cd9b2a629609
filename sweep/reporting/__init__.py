"""The screen: the live table, one line per trial, tables of rows, the words at the end.

Read only, and light: rich is imported where something is drawn, and nothing heavier at all.

    formats    numbers, durations, times and spark lines as people read them
    progress   the state of a running search, as displays need it
    display    the listener: its thread, and the screen that a stream gets
    live       screen: the table on a terminal
    lines      screen: one line per trial that can be grepped
    tables     rows as table, JSON or CSV
    rows       studies and trials as rows
    filters    which rows are meant: conditions, states, columns
    report/    the page about a study: HTML, Markdown, PNG
    summary    the end of a search, and what to type next
"""
