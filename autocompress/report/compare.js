(() => {
  "use strict";
  const root = document.documentElement;
  const at = (id) => document.getElementById(id);

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  function theme() {
    const font = getComputedStyle(document.body).fontFamily;
    return {
      "xaxis.gridcolor": colour("line"), "xaxis.linecolor": colour("line"),
      "yaxis.gridcolor": colour("line"), "yaxis.linecolor": colour("line"),
      "font.color": colour("ink"), "font.family": font, "font.size": 13,
      "hoverlabel.bgcolor": colour("paper"), "hoverlabel.bordercolor": colour("grey"),
      "hoverlabel.font.color": colour("ink"), "hoverlabel.font.family": font,
    };
  }

  (async () => {
    const figures = JSON.parse(await unpack("run-data"));
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-source");
    document.head.append(script);
    for (const [id, figure] of Object.entries(figures)) {
      await Plotly.newPlot(at(id), figure.data, figure.layout, { responsive: true, displaylogo: false });
      await Plotly.relayout(at(id), theme());
      dark.addEventListener("change", () => Plotly.relayout(at(id), theme()));
    }
    root.classList.add("scripted", "drawn");
  })().catch((problem) => console.error(problem));
})();
