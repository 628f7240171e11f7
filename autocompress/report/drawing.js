// What every page does: unpack what it carries, draw its figures, follow the reader's colours.
const drawing = (() => {
  "use strict";
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);

  async function unpack(id) {
    const text = at(id).textContent;
    let bytes;
    if (Uint8Array.fromBase64) {
      bytes = Uint8Array.fromBase64(text);
    } else {
      const letters = atob(text);
      bytes = new Uint8Array(letters.length);
      for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
    }
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
      "hoverlabel.bgcolor": colour("paper"),
      "hoverlabel.bordercolor": colour("grey"),
      "hoverlabel.font.color": colour("ink"),
      "hoverlabel.font.family": getComputedStyle(document.body).fontFamily,
    };
  }
  // A copy of a layout with keys such as "xaxis.title.text" set in it.
  function settled(layout, changes) {
    const found = structuredClone(layout);
    for (const [path, value] of Object.entries(changes)) {
      const names = path.split(".");
      const last = names.pop();
      let place = found;
      for (const name of names) place = place[name] ??= {};
      place[last] = value;
    }
    return found;
  }
  async function draw(id, figure) {
    const place = at(id);
    if (!place) return null;
    const narrow = matchMedia("(max-width: 760px)");
    // Plotly writes into the layout that it is given.
    const wide = { margin: { ...figure.layout.margin }, y: figure.layout.legend ? figure.layout.legend.y : 1 };
    function fit() {
      // On a phone the legend stands below, and the space is the plot's.
      return {
        margin: narrow.matches ? { l: 46, r: 8, t: 8, b: 44 } : wide.margin,
        "legend.y": narrow.matches ? -0.16 : wide.y,
        "legend.yanchor": narrow.matches ? "top" : "bottom",
        "font.size": narrow.matches ? 12 : 13,
      };
    }
    const options = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    // Colours and margins are set before the first drawing: a second one would take as long again.
    const layout = settled(figure.layout, { ...theme(figure.layout), ...fit() });
    // The place has the height, and the figure takes what the place has: it keeps it when the window changes.
    place.style.height = `${narrow.matches ? Math.min(layout.height, 480) : layout.height}px`;
    delete layout.height;
    await Plotly.newPlot(place, figure.data, layout, options);
    narrow.addEventListener("change", () => Plotly.relayout(place, fit()));
    dark.addEventListener("change", () => Plotly.relayout(place, theme(figure.layout)));
    return place;
  }

  async function plotly() {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-source");
    document.head.append(script);
  }

  return { root, at, unpack, plotly, draw, colour };
})();
