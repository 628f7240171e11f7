// What every page does: unpack what it carries, draw its figures, follow the reader's colours.
const drawing = (() => {
  "use strict";
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // ---- colours follow the reader's scheme ---------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  function theme(layout) {
    const axes = {};
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        axes[`${key}.gridcolor`] = axes[`${key}.linecolor`] = colour("line");
      }
    }
    return {
      ...axes,
      "font.color": colour("ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": 13,
      "hoverlabel.bgcolor": colour("paper"),
      "hoverlabel.bordercolor": colour("grey"),
      "hoverlabel.font.color": colour("ink"),
      "hoverlabel.font.family": getComputedStyle(document.body).fontFamily,
    };
  }
  async function draw(id, figure) {
    const place = at(id);
    if (!place) return null;
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    await Plotly.newPlot(place, figure.data, figure.layout, options);
    await Plotly.relayout(place, theme(figure.layout));
    dark.addEventListener("change", () => Plotly.relayout(place, theme(figure.layout)));
    return place;
  }

  async function plotly() {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-source");
    document.head.append(script);
  }

  return { root, at, unpack, plotly, draw };
})();
