"""One compression as a page to look at: a single HTML file that needs no network.

`findings` measures, the figures draw (matplotlib, as SVG in the colours of the page), and the parts here write.
"""
