// Common to every page: unpack the data, draw the figures, follow the light or dark colour scheme.
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
      for (let index = 0; index < letters.length; index++) bytes[index] = letters.charCodeAt(index);
    }
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // ---- colour scheme ------------------------------------------------------------------------
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
  // Return a copy of a layout in which keys such as "xaxis.title.text" are set.
  function withChanges(layout, changes) {
    const copy = structuredClone(layout);
    for (const [path, value] of Object.entries(changes)) {
      const names = path.split(".");
      const last = names.pop();
      let target = copy;
      for (const name of names) target = target[name] ??= {};
      target[last] = value;
    }
    return copy;
  }
  async function draw(id, figure) {
    const element = at(id);
    if (!element) return null;
    const narrow = matchMedia("(max-width: 760px)");
    // Plotly changes the layout that it gets, so the original margins are kept here.
    const wide = { margin: { ...figure.layout.margin }, y: figure.layout.legend ? figure.layout.legend.y : 1 };
    const low = figure.layout.height < 400 ? -0.26 : -0.16;
    function fit() {
      // On a narrow screen the legend is below the plot, which then has the full width.
      return {
        margin: narrow.matches ? { l: 46, r: 8, t: 8, b: 44 } : wide.margin,
        "legend.y": narrow.matches ? low : wide.y,
        "legend.yanchor": narrow.matches ? "top" : "bottom",
        "font.size": narrow.matches ? 12 : 13,
      };
    }
    const options = { responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    // Set colours and margins before the first drawing: a second drawing would double the time.
    const layout = withChanges(figure.layout, { ...theme(figure.layout), ...fit() });
    // The element has the height and the figure fills it, so that the height stays when the window is resized.
    element.style.height = `${narrow.matches ? Math.min(layout.height, 480) : layout.height}px`;
    delete layout.height;
    await Plotly.newPlot(element, figure.data, layout, options);
    narrow.addEventListener("change", () => Plotly.relayout(element, fit()));
    dark.addEventListener("change", () => Plotly.relayout(element, theme(figure.layout)));
    return element;
  }

  async function plotly() {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-source");
    document.head.append(script);
  }

  return { root, at, unpack, plotly, draw, colour };
})();
