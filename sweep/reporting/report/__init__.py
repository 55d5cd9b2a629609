"""One page about a study: what came out, how sure that is, what to do next.

axes        what varies in a study, one axis a parameter
importance  which parameters matter, and how sure that is
findings    the same in sentences: which choice, what to widen, when to stop
contents    the page as sections of words, tables and charts
chart_data  what the charts draw, as JSON
html        the page: one file with its style, its data and its script
markdown    the same words and tables
picture     the page as PNG, by an installed browser
"""
