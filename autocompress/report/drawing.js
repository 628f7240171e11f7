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
  // Plotly writes 20k where tables, limits and filters have 20K: another text for each tick of up to three digits.
  const capitals = Object.fromEntries([1, 10, 100].flatMap((scale) =>
    Array.from({ length: 900 }, (_, index) => `${(100 + index) / scale}k`).map((text) => [text, text.replace("k", "K")])));
  function capitalize(layout) {
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key) && layout[key].tickformat);
    return Object.fromEntries(axes.map((key) => [`${key}.labelalias`, capitals]));
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
  // ---- downloads of a figure ------------------------------------------------------------------
  function save(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }
  function csvCell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    // A spreadsheet would run a text that begins with one of these characters as a formula.
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }
  const csvText = (rows) => rows.map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
  function figureRows(plot) {
    const title = (axis, name) => plot.layout[axis]?.title?.text || name;
    const rows = [["series", "label", title("xaxis", "x"), title("yaxis", "y")]];
    for (const trace of plot.data) {
      Array.from(trace.x || []).forEach((x, row) => {
        const label = trace.customdata?.[row];
        if (x !== null) rows.push([trace.name || "", Array.isArray(label) ? "" : label, x, trace.y[row]]);
      });
    }
    return rows;
  }
  const downloads = (id) => [
    { name: "svg", title: "Download as SVG", icon: Plotly.Icons.disk, click: (plot) => Plotly.downloadImage(plot, { format: "svg", filename: id }) },
    { name: "csv", title: "Download points as CSV", icon: Plotly.Icons.drawline, click: (plot) => save(`${id}.csv`, new Blob([csvText(figureRows(plot))], { type: "text/csv" })) },
  ];

  // ---- assistive technology ---------------------------------------------------------------------
  // The text of a tooltip without its markup.
  const plainText = (hover) => hover.replaceAll("<br>", ", ").replaceAll(/<[^>]*>/g, "")
    .replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  // Points with tooltips have them as labels; points without any are part of the picture, which has a label.
  function labelPoints(plot) {
    for (const trace of plot.querySelectorAll(".scatterlayer .trace")) {
      const { name, hovertext } = trace.__data__[0].trace;
      for (const point of trace.querySelectorAll(".point")) {
        const hover = hovertext?.[point.__data__.i];
        if (!hover) continue;
        point.setAttribute("role", "img");
        point.setAttribute("aria-label", plainText(hover.startsWith("<b>") ? hover : `${name} ${hover}`));
      }
    }
  }
  function labelPicture(plot, title) {
    const [first, ...others] = plot.querySelectorAll(".main-svg");
    first?.setAttribute("role", "img");
    first?.setAttribute("aria-label", title);
    for (const svg of others) svg.setAttribute("aria-hidden", "true");
  }

  const idle = () => new Promise((resolve) => (window.requestIdleCallback || setTimeout)(resolve));

  async function draw(id, figure) {
    const element = at(id);
    if (!element) return null;
    const narrow = matchMedia("(max-width: 760px)");
    // Plotly changes the layout that it gets, so the original margins are kept here.
    const wide = { margin: { ...figure.layout.margin }, y: figure.layout.legend ? figure.layout.legend.y : 1 };
    const isParallel = figure.data[0]?.type === "parcoords";
    // Below the title of the axis, as a share of the height of the plot: what margins and rows of the legend leave.
    const rows = Math.ceil(figure.data.filter((trace) => trace.showlegend !== false && trace.name).length / 2);
    const low = -58 / Math.max(80, Math.min(figure.layout.height, 480) - 60 - 20 * rows);
    function fit() {
      // On a narrow screen the legend is below the plot, which then has the full width.
      return {
        margin: narrow.matches ? (isParallel ? { l: 56, r: 40, t: 72, b: 24 } : { l: 60, r: 16, t: 8, b: 44 }) : wide.margin,
        "legend.y": narrow.matches ? low : wide.y,
        "legend.yanchor": narrow.matches ? "top" : "bottom",
        // Two columns: one below the other, the names would take half of a phone's plot.
        ...(figure.layout.legend ? { "legend.entrywidthmode": narrow.matches ? "fraction" : "pixels", "legend.entrywidth": narrow.matches ? 0.48 : 0 } : {}),
        "font.size": narrow.matches ? 12 : 13,
        // Of a logarithmic axis with few ticks, only the powers of ten have one.
        ...(figure.layout.xaxis?.type === "log" ? { "xaxis.nticks": narrow.matches ? 5 : figure.layout.xaxis.nticks } : {}),
        // A narrow plot has no room beside it; tooltips have the values.
        ...(figure.layout.coloraxis ? { "coloraxis.showscale": !narrow.matches } : {}),
      };
    }
    const options = { responsive: true, displaylogo: false, toImageButtonOptions: { filename: id }, modeBarButtonsToAdd: downloads(id), displayModeBar: narrow.matches ? false : "hover", showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "sendDataToCloud", "sendChartToCloud"] };
    // Set colours and margins before the first drawing: a second drawing would double the time.
    const layout = withChanges(figure.layout, { ...theme(figure.layout), ...capitalize(figure.layout), ...fit() });
    // The element has the height and the figure fills it, so that the height stays when the window is resized.
    element.style.height = `${narrow.matches ? Math.min(layout.height, 480) : layout.height}px`;
    delete layout.height;
    await Plotly.newPlot(element, figure.data, layout, options);
    if (figure.data.some(({ hovertext }) => hovertext)) {
      // Thousands of labels take a while: the plot is visible first.
      idle().then(() => labelPoints(element));
      element.on("plotly_afterplot", () => labelPoints(element));
    } else {
      labelPicture(element, element.getAttribute("aria-label") || "");
    }
    narrow.addEventListener("change", () => Plotly.relayout(element, fit()));
    dark.addEventListener("change", () => Plotly.relayout(element, theme(figure.layout)));
    return element;
  }

  // ---- elements of the page -----------------------------------------------------------------
  function element(tag, text, attributes = {}) {
    const result = document.createElement(tag);
    if (text !== undefined) result.textContent = text;
    for (const [name, value] of Object.entries(attributes)) result.setAttribute(name, value);
    return result;
  }
  function addCopyButton(command) {
    const button = element("button", "Copy", { type: "button", class: "pin copy" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        button.textContent = "Copied";
      } catch {
        // Without access to the clipboard, the command is selected, so that a key copies it.
        getSelection().selectAllChildren(command);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    command.after(button);
  }

  async function plotly() {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly-source");
    document.head.append(script);
  }

  return { root, at, unpack, plotly, idle, draw, colour, save, csvText, figureRows, plainText, element, addCopyButton };
})();
