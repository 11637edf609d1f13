"""The page's style sheet: one accent colour, which marks the recommended file everywhere; light and dark."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf8; --card: #ffffff; --ink: #1c1b19; --soft: #68655e; --faint: #96928a; --rule: #e3dfd6; --grid: #ece8e0;
  --plain: #8b877f; --accent: #0b7a5c; --wash: #e2f1ea; --noise: #e9e5db; --beyond: #f1ece2; --mark: #ffe08a;
    --on-mark: #1c1b19;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #151613; --card: #1c1d1a; --ink: #eceae3; --soft: #a8a49a; --faint: #7c7970; --rule: #34352f; --grid: #272823;
    --plain: #8f8c83; --accent: #58cfa6; --wash: #1b3329; --noise: #292a25; --beyond: #20211d; --mark: #7a5c10;
    --on-mark: #fff6dc;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Inter, Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main, footer { max-width: 1064px; margin: 0 auto; padding: 0 32px; }
h1, h2, .lead { font-family: ui-serif, Charter, "Iowan Old Style", "Palatino Linotype", Palatino, "Noto Serif", Georgia,
    serif; }
h1 { font-size: 44px; line-height: 1.1; letter-spacing: -.015em; font-weight: 600; margin: 6px 0 14px; text-wrap: balance; }
h2 { font-size: 26px; line-height: 1.2; letter-spacing: -.01em; font-weight: 600; margin: 0 0 6px; text-wrap: balance; }
h3 { font-size: 15px; margin: 26px 0 8px; font-weight: 600; }
p { margin: 0 0 12px; max-width: 68ch; text-wrap: pretty; }
header { padding: 56px 0 8px; }
.over { font-size: 13px; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); margin: 0; }
.what { color: var(--soft); max-width: none; }
section { border-top: 1px solid var(--rule); padding: 36px 0 40px; }
.take { border: 0; padding: 20px 0 36px; }
.lead { font-size: 23px; line-height: 1.42; max-width: 56ch; margin: 0 0 18px; }
.lead strong { color: var(--accent); font-weight: 600; }
.more { margin: 0; padding: 0; list-style: none; max-width: 72ch; }
.more li { padding: 7px 0 7px 22px; position: relative; }
.more li::before { content: ""; position: absolute; left: 2px; top: 17px; width: 8px; height: 2px; background: var(--accent); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; margin: 6px 0 22px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.facts div { background: var(--card); padding: 14px 18px 12px; }
.facts dt { font-size: 13px; color: var(--soft); }
.facts dd { margin: 0; font-size: 25px; line-height: 1.25; letter-spacing: -.01em; }
.facts dd span { font-size: 14px; color: var(--soft); letter-spacing: 0; }
.facts small { display: block; font-size: 13px; color: var(--soft); letter-spacing: 0; }
figure { margin: 22px 0 0; }
figcaption, .under { font-size: 13px; line-height: 1.5; color: var(--soft); margin-top: 10px; max-width: 100ch; }
.panel { margin-top: 34px; }
.wide { display: block; } .narrow { display: none; }
svg { display: block; max-width: 100%; height: auto; font-size: 13px; font-family: inherit; overflow: visible; }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 26px 24px; }
.three svg { width: 100%; max-width: 430px; }
text { fill: var(--ink); }
.label { paint-order: stroke; stroke: var(--paper); stroke-width: 3.5px; stroke-linejoin: round; }
.axis, .tick, .soft { fill: var(--soft); } .tick { font-size: 12px; } .small { font-size: 12px; } .title { font-size: 12.5px; }
.label { font-size: 13px; } .figure { font-size: 12.5px; }
.label.chosen { fill: var(--accent); font-weight: 650; }
.grid { stroke: var(--grid); } .base { stroke: var(--faint); } .row { stroke: var(--rule); }
.noise { fill: var(--noise); } .beyond { fill: var(--beyond); } .limit { stroke: var(--ink); stroke-dasharray: 4 3; }
.front { fill: none; stroke: var(--ink); stroke-width: 1.2; stroke-opacity: .55; stroke-linejoin: round; }
.dot.plain { fill: var(--ink); } .dot.chosen { fill: var(--accent); } .dot.ring { fill: var(--paper); stroke: var(--ink);
    stroke-width: 1.8; }
.dot.ring.chosen { stroke: var(--accent); }
.whisker.plain { stroke: var(--plain); stroke-width: 1.4; } .whisker.chosen { stroke: var(--accent); stroke-width: 2; }
.thread, .line, .lead { fill: none; }
.thread.plain { stroke: var(--plain); stroke-opacity: .38; } .thread.chosen { stroke: var(--accent); stroke-width: 1.6; }
.line.plain { stroke: var(--plain); stroke-width: 1.5; } .line.chosen { stroke: var(--accent); stroke-width: 2.6; }
.lead.plain { stroke: var(--rule); } .lead.chosen { stroke: var(--accent); stroke-opacity: .5; }
.bar.plain { fill: var(--plain); fill-opacity: .5; } .bar.chosen { fill: var(--accent); }
.refer { stroke: var(--ink); stroke-width: 1.4; }
.scroll { overflow-x: auto; margin: 18px 0 0; border: 1px solid var(--rule); border-radius: 10px; background: var(--card); }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.35; }
th, td { padding: 9px 11px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); font-weight: 400;
    overflow-wrap: normal; }
thead th { color: var(--soft); font-size: 13px; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
th.w, td.w { text-align: left; }
th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
tbody th { font-weight: 550; max-width: 230px; overflow: hidden; text-overflow: ellipsis; }
tr.chosen > *, td.chosen, th.chosen { background: var(--wash); } tr.chosen th, thead th.chosen { color: var(--accent); }
tr.sum > * { border-top: 2px solid var(--rule); }
td svg { margin: 4px 0 0 auto; width: 72px; height: 14px; max-width: none; } td b { font-weight: 700; }
details { margin-top: 18px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
summary:hover { color: var(--ink); }
.asked { margin-top: 28px; } .asked > p { font-weight: 600; max-width: 80ch; white-space: pre-wrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 14px;
    align-items: start; }
.card { border: 1px solid var(--rule); border-radius: 10px; background: var(--card); padding: 14px 16px; font-size: 14.5px; }
.card.chosen { border-color: var(--accent); }
.card h4 { margin: 0 0 2px; font-size: 14px; font-weight: 600; } .card.chosen h4 { color: var(--accent); }
.card .where { font-size: 13px; color: var(--soft); margin: 0 0 8px; }
.said { white-space: pre-wrap; max-height: 340px; overflow: auto; unicode-bidi: isolate; }
.said .same { color: var(--soft); } mark { background: var(--mark); color: var(--on-mark); border-radius: 3px;
    padding: 1px 2px; }
dl.how { display: grid; grid-template-columns: 130px 1fr; gap: 8px 20px; margin: 14px 0 0; font-size: 15px; }
dl.how dt { color: var(--soft); } dl.how dd { margin: 0; }
code { font: 12.5px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { color: var(--soft); font-size: 13px; padding-bottom: 56px; } footer p { border-top: 1px solid var(--rule);
    padding-top: 18px; max-width: none; }
@media (max-width: 720px) {
  main, footer { padding: 0 16px; } footer { padding-bottom: 36px; }
  header { padding-top: 28px; } h1 { font-size: 32px; } h2 { font-size: 23px; } .lead { font-size: 19.5px; }
  section { padding: 26px 0 30px; } .facts { grid-template-columns: 1fr 1fr; }
  .facts div:last-child:nth-child(odd) { grid-column: 1 / -1; } .facts div { padding: 11px 14px; }
    .facts dd { font-size: 21px; }
  .wide { display: none; } .narrow { display: block; } .narrow svg { width: 100%; max-width: 480px; }
  dl.how { grid-template-columns: 1fr; gap: 0; } dl.how dd { margin-bottom: 10px; }
  th, td { padding: 8px 10px; } tbody th { max-width: 150px; }
}
@media print { body { background: #fff; } section, figure, .card { break-inside: avoid; } .said { max-height: none; } }
"""
