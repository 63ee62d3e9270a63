"""How every page looks: light or dark as the reader's system is, readable on paper, one heat map.

Reports are drawn when a run is over, the playground is alive; both take colours and words from here.

A value is shown by one of `HEAT_LEVELS` shades: |value - middle| / reach, with reach the
`HEAT_REACH_QUANTILE` of those distances, so that one huge token (often the first) does not pale all
others.
"""

_LIGHT = """--ink:#1d2226;--muted:#5c666e;--page:#fbfaf8;--card:#fff;--line:#dcdfe2;--accent:#0072B2;
--good:#00795a;--bad:#b84a00;--open:#6b7480;--soft:#f1f3f4"""
_DARK = """--ink:#e8eaec;--muted:#a3adb5;--page:#15181b;--card:#1e2226;
--line:#363d43;--accent:#6cbcf0;--good:#4fcf9f;--bad:#ff9a5c;--open:#a3adb5;--soft:#262b30"""
# `data-theme` is for pages that have a switch; without it the reader's system decides.
STYLE = (
    f"""
:root{{{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_DARK}}}}}
:root[data-theme=dark]{{{_DARK}}}
""".strip()
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:17px/1.55 system-ui,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:2.3rem;line-height:1.15;margin:.2rem 0 .6rem;letter-spacing:-.015em}
h2{font-size:1.45rem;margin:3rem 0 .8rem}
h3{font-size:1.15rem;margin:1.6rem 0 .6rem}
p{margin:.4rem 0}
a{color:var(--accent)}
.kicker{text-transform:uppercase;letter-spacing:.09em;font-size:.8rem;color:var(--muted)}
.subject{font-size:1.15rem;overflow-wrap:anywhere}
.muted{color:var(--muted);font-size:.95rem}
.verdict{background:var(--card);border:1px solid var(--line);border-left:6px solid var(--tone);
border-radius:8px;padding:1rem 1.3rem;margin:.8rem 0}
.good{--tone:var(--good)}.bad{--tone:var(--bad)}.open{--tone:var(--open)}
.question{color:var(--muted);font-size:.95rem;margin:0}
.answer{font-weight:700;color:var(--tone);margin:.1rem 0}
.answer::first-letter{text-transform:uppercase}
.primary .answer{font-size:1.9rem;line-height:1.2}
.primary .sentence{font-size:1.2rem}
.exploratory{border-style:dashed;border-left-style:solid;margin:0}
.exploratory .sentence{font-size:.95rem}
.chip{border:1px solid var(--line);border-radius:1rem;padding:.05rem .6rem;font-size:.78rem;
white-space:nowrap}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:.9rem}
.reading{background:var(--soft);border-radius:8px;padding:.1rem 1.4rem 1rem;margin-top:2.5rem}
.reading h2{margin-top:1.1rem}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.42rem .8rem;border-bottom:1px solid var(--line);vertical-align:top}
th[scope=row]{font-weight:500;min-width:12rem}
td span{color:var(--muted);white-space:nowrap}
td.record,th.record{background:var(--soft)}
tr.group th{color:var(--muted);font-weight:600;font-size:.82rem;padding-top:1rem}
tbody tr:last-child>*{border-bottom:0}
.facts td{overflow-wrap:anywhere}
figure{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:1.4rem 0;
padding:.4rem 1.3rem 1.1rem;break-inside:avoid}
figure img{display:block;max-width:100%;height:auto;margin:0 auto;background:#fff;border-radius:4px}
figcaption{max-width:50rem;font-size:.97rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1rem;margin:.8rem 0 0}
dt{font-weight:600}dd{margin:0}
.for{color:var(--good)}.against{color:var(--bad)}
summary{cursor:pointer;color:var(--accent);margin:.6rem 0}
@media (max-width:40rem){dl{grid-template-columns:1fr}h1{font-size:1.8rem}}
@media print{body{background:#fff}.verdict,figure{break-inside:avoid}}
"""
)
"""Style sheet of all pages."""

BAR_STYLE = """
table.bars{table-layout:fixed;font-size:.86rem;margin:.4rem 0 .6rem}
.bars caption{text-align:left;color:var(--muted);padding:0 0 .2rem}
.bars th,.bars td{padding:.14rem .5rem;border:0;vertical-align:middle}
.bars th{font-weight:400;min-width:0;overflow-wrap:anywhere}
.bars th[scope=row]{min-width:0}
.bars tr>:first-child{padding-left:0}
.bars tr>:last-child{padding-right:0}
.bars .number{text-align:right;white-space:nowrap}
.bars .how{color:var(--muted)}
.bars col.name{width:27%}.bars col.number{width:5.4rem}.bars col.how{width:11rem}
.bars .rated{color:var(--muted);font-size:.78rem;white-space:nowrap}
.bars thead th{color:var(--muted);font-size:.78rem}
.bars tfoot th,.bars tfoot td{border-top:1px solid var(--line);font-weight:600}
.track{position:relative;height:.85rem;border-radius:3px;print-color-adjust:exact;
-webkit-print-color-adjust:exact;background:var(--soft)}
.track::after{content:"";position:absolute;left:50%;top:-.15rem;bottom:-.15rem;width:1px;
background:var(--muted)}
.track i{position:absolute;top:0;bottom:0;min-width:1px}
.track .plus{left:50%;background:var(--accent);border-radius:0 3px 3px 0}
.track .minus{right:50%;background:var(--bad);border-radius:3px 0 0 3px}
@media (max-width:40rem){.bars :is(th,td).how{display:none}.bars col.how{width:0}.bars col.name{width:40%}}
""".strip()
"""Bars from a middle line: to the right what raises a score, to the left what lowers it."""

HEAT_LEVELS = 5
HEAT_REACH_QUANTILE = 0.98
HEAT_STRENGTH = 0.6
"""Opacity of the strongest shade; text stays readable on it, in light and dark."""
HEAT_COLOURS = {"up": (0, 114, 178), "down": (213, 94, 0), "gate": (0, 158, 115)}
"""Red, green, blue of what raises, what lowers, and of weights; of Okabe and Ito (2008)."""
HEAT_WORDS = "what a token adds to the score, blue raises it, orange lowers it"


def heat_style() -> str:
    """Classes up1..up5, down1..down5, gate1..gate5, from pale to strong."""
    return "".join(
        f".{name}{level}{{background:rgba({red},{green},{blue},"
        f"{HEAT_STRENGTH * level / HEAT_LEVELS:.2f})}}"
        for name, (red, green, blue) in HEAT_COLOURS.items()
        for level in range(1, HEAT_LEVELS + 1)
    )
