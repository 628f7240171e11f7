(() => {
  "use strict";
  const { root, at, unpack, plotly, draw, colour } = drawing;
  root.classList.add("scripted");

  // ---- the front as a step line on the selected axes ------------------------------------------
  function stepLine(plot, upward) {
    const points = [];
    for (const trace of plot.data) {
      if (trace.meta !== "front" && trace.meta !== "dominated") continue;
      trace.x.forEach((x, row) => {
        if (x !== null && trace.y[row] !== null) points.push([x, trace.y[row]]);
      });
    }
    const sign = upward ? 1 : -1;
    points.sort((a, b) => a[0] - b[0] || sign * (b[1] - a[1]));
    const line = [];
    for (const point of points) {
      if (!line.length || sign * (point[1] - line[line.length - 1][1]) > 0) line.push(point);
    }
    return line;
  }

  function controls(plot, menus, directions, limits) {
    plot.dataset.score = menus.find((menu) => menu.name === "score").buttons[0].name;
    for (const menu of menus) {
      const wrap = document.createElement("label");
      const select = document.createElement("select");
      wrap.append({ cost: "Cost", score: "Score", scale: "Scale" }[menu.name], select);
      for (const button of menu.buttons) select.append(new Option(button.label));
      select.dataset.kept = menu.name;
      select.addEventListener("change", async () => {
        const chosen = menu.buttons[select.selectedIndex];
        await Plotly[chosen.method](plot, ...chosen.args);
        if (chosen.method !== "update") return;
        if (menu.name === "score") plot.dataset.score = chosen.name;
        limits.follow(menu.name, chosen);
        const line = stepLine(plot, directions[plot.dataset.score] !== "minimize");
        const index = plot.data.findIndex((trace) => trace.meta === "line");
        Plotly.restyle(plot, { x: [line.map((point) => point[0])], y: [line.map((point) => point[1])] }, [index]);
      });
      at("front-controls").append(wrap);
    }
    at("everything").addEventListener("click", () => {
      const upward = directions[plot.dataset.score] !== "minimize";
      Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": upward ? true : "reversed" });
    });
  }

  // ---- limits: one slider per axis of the plot ------------------------------------------------
  const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]];
  function human(value, share) {
    if (share) return `${(100 * value).toFixed(1)}%`;
    const [size, prefix] = PREFIXES.find(([size]) => Math.abs(value) >= size * 0.9995) || [1, ""];
    return `${Number((value / size).toPrecision(3))}${prefix && ` ${prefix}`}`;
  }

  function sliders(run, menus, changed) {
    const byAxis = {};
    function follow(kind, button) {
      const slider = byAxis[kind];
      if (!slider) return;
      slider.column = run.columns.indexOf(button.name);
      slider.least = kind === "score" && run.directions[button.name] === "maximize";
      slider.share = kind === "score" && button.args[1]["yaxis.tickformat"] === ".0%";
      // One step moves to the next value of a candidate: the resolution is high where there are many candidates.
      const values = run.data.map((cells) => cells[slider.column]).filter((value) => value !== null);
      slider.values = [...new Set(values)].sort((a, b) => (slider.least ? a - b : b - a));
      slider.name.textContent = `${button.label} ${slider.least ? "at least" : "at most"}`;
      slider.input.max = Math.max(slider.values.length - 1, 0);
      slider.input.value = 0;
      showValue(slider);
    }
    function showValue(slider) {
      const index = Number(slider.input.value);
      const text = index ? human(slider.values[index], slider.share) : "any";
      slider.shown.textContent = text;
      slider.input.setAttribute("aria-valuetext", text);
    }
    for (const kind of ["cost", "score"]) {
      const label = document.createElement("label");
      const [name, shown, input] = ["span", "output", "input"].map((tag) => document.createElement(tag));
      Object.assign(input, { type: "range", min: 0, step: 1, id: `limit-${kind}` });
      input.dataset.kept = `limit-${kind}`;
      const line = document.createElement("span");
      line.append(name, " ", shown);
      label.className = "slider";
      label.append(line, input);
      at("limits").append(label);
      const slider = (byAxis[kind] = { input, name, shown });
      follow(kind, menus.find((menu) => menu.name === kind).buttons[0]);
      input.addEventListener("input", () => {
        showValue(slider);
        changed();
      });
    }
    const limit = (kind) => {
      const { input, values } = byAxis[kind];
      return Number(input.value) ? values[Number(input.value)] : null;
    };
    function satisfies(row) {
      return Object.keys(byAxis).every((kind) => {
        const [value, bound] = [row.cells[byAxis[kind].column], limit(kind)];
        return bound === null || (value !== null && (byAxis[kind].least ? value >= bound : value <= bound));
      });
    }
    // The limits as lines across the plot.
    function lines() {
      const shape = { type: "line", line: { color: colour("orange"), width: 1.5, dash: "dot" } };
      const [cost, score] = [limit("cost"), limit("score")];
      return [
        ...(cost === null ? [] : [{ ...shape, x0: cost, x1: cost, y0: 0, y1: 1, yref: "paper" }]),
        ...(score === null ? [] : [{ ...shape, y0: score, y1: score, x0: 0, x1: 1, xref: "paper" }]),
      ];
    }
    return {
      satisfies, lines,
      follow(kind, button) {
        follow(kind, button);
        changed();
      },
      set: () => Object.keys(byAxis).some((kind) => limit(kind) !== null),
    };
  }
  const NO_LIMITS = { satisfies: () => true, lines: () => [], follow() {}, set: () => false };

  // ---- the filter: words and comparisons ----------------------------------------------------
  const TOKEN = /([^\s<>=!,"']+)\s*(<=|>=|==|!=|=|<|>)\s*("[^"]*"|'[^']*'|[^\s,]+)|"([^"]*)"|([^\s,]+)/g;
  const COMPARE = {
    "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
    "=": (a, b) => a === b, "==": (a, b) => a === b, "!=": (a, b) => a !== b,
  };
  function parse(text, columns) {
    const tests = [];
    for (const [, name, sign, value, quoted, word] of text.matchAll(TOKEN)) {
      if (name !== undefined) {
        const column = columns.indexOf(name);
        if (column < 0) throw new Error(`Unknown column ${name}.`);
        const bare = value.replace(/^(["'])(.*)\1$/, "$2");
        const number = Number(bare);
        const wanted = bare === value && !Number.isNaN(number) ? number : bare;
        tests.push((row) => row.cells[column] !== null && COMPARE[sign](row.cells[column], wanted));
      } else if (word !== "and") {
        const piece = (quoted ?? word).toLowerCase();
        tests.push((row) => row.text.includes(piece));
      }
    }
    return (row) => tests.every((test) => test(row));
  }

  function table(run, plot, limits) {
    const head = at("table").tHead.rows[0];
    const body = at("table").tBodies[0];
    const first = at("status").textContent;
    const identity = run.columns.indexOf("id");
    const rows = run.data.map((cells, index) => ({
      cells, index, html: run.rows[index], text: cells.filter((cell) => typeof cell === "string").join(" ").toLowerCase(),
    }));
    let shown = rows;
    let sort = null;

    function show() {
      const ordered = [...shown];
      if (sort) {
        ordered.sort((a, b) => {
          const [one, other] = [a.cells[sort.column], b.cells[sort.column]];
          if (one === null || other === null) return (one === null) - (other === null) || a.index - b.index;
          const order = typeof one === "number" ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
          return order * sort.sign || a.index - b.index;
        });
      }
      // The rows are HTML that was escaped when the page was written.
      body.innerHTML = ordered.slice(0, run.limit).map((row) => row.html).join("");
      return ordered;
    }
    let ordered = rows;

    for (const cell of head.cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = cell.textContent;
      cell.replaceChildren(button);
      button.addEventListener("click", () => {
        const column = run.columns.indexOf(cell.dataset.name);
        const again = sort && sort.column === column;
        const down = run.directions[cell.dataset.name] === "maximize";
        sort = { column, sign: again ? -sort.sign : down ? -1 : 1 };
        for (const other of head.cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", sort.sign > 0 ? "ascending" : "descending");
        ordered = show();
      });
    }

    const limited = () => at("filter").value.trim() !== "" || limits().set();
    function filter() {
      const text = at("filter").value.trim();
      try {
        const keep = parse(text, run.columns);
        shown = limited() ? rows.filter((row) => keep(row) && limits().satisfies(row)) : rows;
      } catch (problem) {
        at("status").textContent = problem.message;
        return;
      }
      ordered = show();
      const count = shown.length.toLocaleString("en");
      at("status").textContent = !limited() ? first
        : shown.length ? `${count} of ${rows.length.toLocaleString("en")} candidates match` +
          (shown.length > run.limit ? `; the table shows the first ${run.limit}.` : ".")
        : "No candidate satisfies this.";
      if (!plot) return;
      const ids = new Set(shown.map((row) => row.cells[identity]));
      const selected = plot.data.map((trace) => {
        if (!limited() || trace.meta === "line" || trace.meta === "teacher") return null;
        return (trace.customdata || []).flatMap((id, row) => (ids.has(id) ? [row] : []));
      });
      Plotly.update(plot, { selectedpoints: selected }, { shapes: limits().lines() });
    }
    let wait = 0;
    function filterSoon() {
      clearTimeout(wait);
      wait = setTimeout(filter, 120);
    }
    at("filter").addEventListener("input", filterSoon);

    at("download").addEventListener("click", () => {
      const cell = (value) => {
        if (value === null) return "";
        if (typeof value !== "string") return String(value);
        const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
        return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
      };
      const lines = [run.columns, ...ordered.map((row) => row.cells)].map((line) => line.map(cell).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
      link.download = "candidates.csv";
      link.click();
      URL.revokeObjectURL(link.href);
    });

    return {
      filterSoon,
      find(id) {
        at("filter").value = `id = "${id}"`;
        filter();
        at("candidates").scrollIntoView();
      },
    };
  }

  function open(id) {
    const card = at(`card-${id}`);
    if (card) {
      at("cards").open = true;
      card.open = true;
      card.scrollIntoView();
    }
    return card !== null;
  }
  addEventListener("hashchange", () => open(decodeURIComponent(location.hash.replace("#card-", ""))));

  // The static pictures stay visible if the figures cannot be drawn.
  function showStatic(problem) {
    root.classList.remove("drawn");
    console.error(problem);
  }

  async function main() {
    // Both are unpacked concurrently; the data is smaller and available first.
    const [data, library] = [unpack("run-data"), plotly().then(() => null, (problem) => problem)];
    const run = JSON.parse(await data);
    let [plot, limits, list] = [null, NO_LIMITS, null];
    try {
      const problem = await library;
      if (problem) throw problem;
      root.classList.add("drawn");
      if (run.front) {
        const menus = run.front.layout.updatemenus;
        delete run.front.layout.updatemenus;
        plot = await draw("front-plot", run.front);
        limits = sliders(run, menus, () => list && list.filterSoon());
        controls(plot, menus, run.directions, limits);
      }
    } catch (problem) {
      showStatic(problem);
    }
    if (run.rows) {
      list = table(run, plot, () => limits);
      if (plot) {
        plot.on("plotly_click", (event) => {
          const id = event.points[0].customdata;
          if (id !== "teacher" && !open(id)) list.find(id);
        });
      }
    }
    root.classList.add("ready");
    dispatchEvent(new Event("ready"));
    // The front is visible first; figures further down are drawn when the browser is idle.
    const idle = () => new Promise((resolve) => (window.requestIdleCallback || setTimeout)(resolve));
    const figures = { "hypervolume-plot": run.hypervolume };
    for (const [name, figure] of Object.entries(run.curves || {})) figures[`curves-${name}`] = figure;
    (run.slices || []).forEach((figure, index) => { figures[`slice-${index}`] = figure; });
    // One figure each time, so that the page answers its reader between them.
    for (const [id, figure] of Object.entries(figures)) {
      await idle();
      await draw(id, figure).catch(showStatic);
    }
    root.classList.add("whole");
  }
  main();
})();
