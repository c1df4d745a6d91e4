"""One static HTML page per run, and the tables that the command line prints at the end.

::

    collect.py    the run folder -> plain values (works when stages are missing)
    gallery.py    which records are shown, and their pictures
    plots.py      score bars and loss curve as inline SVG
    build.py      values + page.html.j2 + style.css -> report/index.html
    summary.py    the same numbers for the terminal

The page needs no network and no script, and says so to the browser (Content-Security-Policy); every text from a
record is escaped.
"""
