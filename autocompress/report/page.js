(() => {
  "use strict";
  const { root, at, unpack, plotly, draw, colour, save, csvText } = drawing;
  root.classList.add("scripted");

  // ---- copy buttons of commands ---------------------------------------------------------------
  function addCopyButton(command) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "pin copy", textContent: "Copy" });
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
  for (const command of document.querySelectorAll("pre.command")) addCopyButton(command);

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

  // Candidates on the front of the selected axes get its marks. On the declared axes, these are the ones of the search.
  function frontGroups(plot, menus) {
    const metas = ["front", "dominated"];
    const indices = metas.map((meta) => plot.data.findIndex((trace) => trace.meta === meta));
    const chosen = { cost: 0, score: 0 };
    const points = indices.flatMap((trace, group) => (plot.data[trace].customdata || []).map((id, row) => {
      const { hovertext, marker: { symbol } } = plot.data[trace];
      return { id, group, trace, row, hover: hovertext[row], symbol: Array.isArray(symbol) ? symbol[row] : symbol };
    }));
    const words = ["</b> on the front", "</b> dominated"];
    return async function regroup(name, index, upward) {
      chosen[name] = index;
      const declared = !chosen.cost && !chosen.score;
      for (const [kind, side] of [["cost", "x"], ["score", "y"]]) {
        const columns = menus.find((menu) => menu.name === kind).buttons[chosen[kind]].args[0][side];
        for (const point of points) point[side] = columns[point.trace][point.row];
      }
      const sign = upward ? 1 : -1;
      const order = points.filter(({ x, y }) => x !== null && y !== null).sort((a, b) => a.x - b.x || sign * (b.y - a.y));
      const front = new Set();
      let best = null;
      for (const point of order) {
        if (best && sign * (point.y - best.y) <= 0 && !(point.y === best.y && point.x === best.x)) continue;
        front.add(point.id);
        if (!best || point.y !== best.y) best = point;
      }
      const parts = [[], []];
      for (const point of points) parts[declared ? point.group : front.has(point.id) ? 0 : 1].push(point);
      const column = (key) => parts.map((part) => part.map((point) => point[key]));
      const hovers = parts.map((part, group) => part.map(({ hover }) => hover.replace(words[1 - group], words[group])));
      await Plotly.restyle(plot, { x: column("x"), y: column("y"), customdata: column("id"), hovertext: hovers, "marker.symbol": column("symbol"), selectedpoints: [null, null] }, indices);
    };
  }

  function controls(plot, menus, directions, limits) {
    const regroup = frontGroups(plot, menus);
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
        await regroup(menu.name, select.selectedIndex, directions[plot.dataset.score] !== "minimize");
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

  // ---- parallel coordinates: the marked ranges filter the table -------------------------------
  const coordinates = {
    plot: null,
    // Axes with a marked range: [values, ranges].
    marked() {
      if (!this.plot) return [];
      return this.plot.data[0].dimensions.filter((axis) => axis.constraintrange)
        .map((axis) => [axis.values, Array.isArray(axis.constraintrange[0]) ? axis.constraintrange : [axis.constraintrange]]);
    },
    async draw(figure, changed) {
      if (matchMedia("(max-width: 760px)").matches) {
        const axes = figure.data[0].dimensions;
        figure.data[0].dimensions = [...axes.slice(0, Math.min(3, axes.length - 2)), ...axes.slice(-2)];
      }
      const labels = figure.data[0].dimensions.map((axis) => axis.label.length);
      const room = at("coordinates").clientWidth / labels.length;
      // Labels that would touch each other are slanted; a letter is about six pixels wide.
      if (labels.some((length, index) => 3 * (length + (labels[index + 1] || 0)) > room)) figure.data[0].labelangle = -20;
      this.plot = await draw("coordinates", figure);
      this.plot.on("plotly_restyle", changed);
    },
  };

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
      linkCards();
      return ordered;
    }
    // A card that is not in the page is built by a script, so only a script makes a link to it.
    function linkCards() {
      for (const name of body.querySelectorAll("[data-card]")) {
        name.replaceWith(element("a", name.dataset.card, { href: `#card-${encodeURIComponent(name.dataset.card)}` }));
      }
    }
    linkCards();
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

    const limited = () => at("filter").value.trim() !== "" || limits().set() || coordinates.marked().length > 0;
    function filter() {
      const text = at("filter").value.trim();
      try {
        const keep = parse(text, run.columns);
        const marked = coordinates.marked();
        const isMarked = ({ index }) => marked.every(([values, ranges]) => ranges.some(([low, high]) => values[index] >= low && values[index] <= high));
        shown = limited() ? rows.filter((row) => keep(row) && limits().satisfies(row) && isMarked(row)) : rows;
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
      save("candidates.csv", new Blob([csvText([run.columns, ...ordered.map((row) => row.cells)])], { type: "text/csv" }));
    });

    return { filterSoon };
  }

  // ---- cards of all candidates, and two of them side by side ----------------------------------
  function element(tag, text, attributes = {}) {
    const result = document.createElement(tag);
    if (text !== undefined) result.textContent = text;
    for (const [name, value] of Object.entries(attributes)) result.setAttribute(name, value);
    return result;
  }
  function tableRow(head, cells, tag = "td") {
    const row = document.createElement("tr");
    row.append(element("th", head, { scope: tag === "th" ? "col" : "row" }), ...cells.map((cell) => element(tag, cell, tag === "th" ? { scope: "col" } : {})));
    return row;
  }
  function fillTable(table, head, rows) {
    table.replaceChildren(document.createElement("thead"), document.createElement("tbody"));
    table.tHead.append(head);
    table.tBodies[0].append(...rows);
  }

  function cards(run) {
    const identity = run.columns.indexOf("id");
    const index = new Map(run.data.map((cells, row) => [cells[identity], row]));
    const value = (row, name) => {
      const column = run.columns.indexOf(name);
      return column < 0 ? null : run.data[row][column];
    };
    const show = (amount, { share, unit }) =>
      amount === null || amount === undefined ? "–" : human(amount, share) + (unit && !share ? ` ${unit}` : "");
    let pins = [];

    function pinButton(id) {
      const button = element("button", undefined, { type: "button", class: "pin" });
      const label = () => {
        button.textContent = pins.includes(id) ? "Pinned" : "Pin for comparison";
        button.setAttribute("aria-pressed", String(pins.includes(id)));
      };
      label();
      button.addEventListener("click", () => setPins(pins.includes(id) ? pins.filter((pin) => pin !== id) : [...pins, id].slice(-2)));
      addEventListener("pins", label);
      return button;
    }

    function build(id) {
      const row = index.get(id);
      const card = element("details", undefined, { class: "card", id: `card-${id}` });
      const head = document.createElement("summary");
      head.append(element("b", id), " ", element("span", ["student", "distill", "prune", "quantize"].map((name) => value(row, name) ?? "none").join(" · ")));
      const [columns, left, right] = [element("div", undefined, { class: "columns" }), element("div"), element("div")];
      const table = element("table", undefined, { class: "plain" });
      fillTable(table, tableRow("score or cost", ["search_val", "select_val", "test"], "th"), run.cards.columns.filter(({ name }) => value(row, name) !== null).map((column) =>
        tableRow(column.label, ["_search", "", "_test"].map((end) => (column.kind === "score" || !end ? show(value(row, column.name + end), column) : "")))));
      left.append(element("h4", "Configuration"), element("pre", run.cards.configs[row]));
      right.append(element("h4", "Scores and costs"), table);
      const command = element("pre", undefined, { class: "command" });
      command.append(element("code", run.cards.command.replace(run.cards.placeholder, id)));
      columns.append(left, right);
      card.append(head, pinButton(id), columns, command);
      addCopyButton(command);
      at("other-cards").append(card);
      return card;
    }

    // The configuration as "student.cnn.width" to its value.
    function flatten(text) {
      const [flat, path] = [new Map(), []];
      for (const line of text.split("\n")) {
        const [, space, key, rest] = line.match(/^( *)([^:]*): ?(.*)$/) || [];
        if (key === undefined) continue;
        path.splice(space.length / 2, Infinity, key);
        if (rest) flat.set(path.join("."), rest);
      }
      return flat;
    }
    function compare() {
      const rows = pins.map((id) => index.get(id));
      at("comparison").classList.toggle("shown", pins.length > 0);
      at("comparison-note").textContent = pins.length < 2 ? `${pins[0] || ""} is pinned. Pin a second candidate on its card to see the differences.`
        : "Settings, scores and costs that differ; the difference is the second minus the first.";
      if (pins.length < 2) return at("comparison-table").replaceChildren();
      const lines = [];
      const configs = rows.map((row) => flatten(run.cards.configs[row]));
      for (const key of new Set(configs.flatMap((config) => [...config.keys()]))) {
        const cells = configs.map((config) => config.get(key) ?? "–");
        if (cells[0] !== cells[1]) lines.push(tableRow(key, [...cells, ""]));
      }
      for (const column of run.cards.columns) {
        for (const [end, split] of column.kind === "score" ? [["", "select_val"], ["_search", "search_val"], ["_test", "test"]] : [["", ""]]) {
          const values = rows.map((row) => value(row, column.name + end));
          if (values.some((amount) => amount === null) || values[0] === values[1]) continue;
          const change = values[1] - values[0];
          const factor = column.kind === "cost" && values[0] > 0 ? ` (${Number((values[1] / values[0]).toPrecision(3))}x)` : "";
          const points = column.share ? `${(100 * change).toFixed(1)} points` : human(change, false);
          lines.push(tableRow(`${column.label}${split && `, ${split}`}`, [...values.map((amount) => show(amount, column)), `${change > 0 ? "+" : ""}${points}${factor}`]));
        }
      }
      fillTable(at("comparison-table"), tableRow("", [...pins, "difference"], "th"), lines);
    }
    function setPins(ids) {
      pins = ids;
      compare();
      dispatchEvent(new Event("pins"));
    }
    at("unpin").addEventListener("click", () => setPins([]));
    for (const card of document.querySelectorAll("details.card")) {
      const id = card.id.replace("card-", "");
      if (index.has(id)) card.querySelector("summary").after(pinButton(id));
    }
    return {
      open(id) {
        const card = at(`card-${id}`) || (index.has(id) ? build(id) : null);
        if (!card) return false;
        if (at("cards") && at("cards").contains(card)) at("cards").open = true;
        card.open = true;
        card.scrollIntoView();
        return true;
      },
    };
  }
  function openHash(all) {
    if (location.hash.startsWith("#card-")) all.open(decodeURIComponent(location.hash.replace("#card-", "")));
  }

  // Figures that are drawn later move what lies below them: the section that the reader went to stays in view.
  function followTarget() {
    let target = document.querySelector(":target");
    addEventListener("hashchange", () => { target = document.querySelector(":target"); });
    // The reader moves on.
    for (const kind of ["wheel", "touchmove", "keydown", "pointerdown"]) {
      addEventListener(kind, () => { target = null; }, { passive: true });
    }
    return () => { if (target) target.scrollIntoView(); };
  }

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
      const all = cards(run);
      addEventListener("hashchange", () => openHash(all));
      openHash(all);
      if (plot) {
        plot.on("plotly_click", (event) => {
          const id = event.points[0].customdata;
          // The address names the card, so that a reload or a mailed link opens it again.
          if (id !== "teacher" && all.open(id)) history.replaceState(null, "", `#card-${encodeURIComponent(id)}`);
        });
      }
    }
    root.classList.add("ready");
    dispatchEvent(new Event("ready"));
    const keepInView = followTarget();
    // The front is visible first; figures further down are drawn when the browser is idle.
    const idle = () => new Promise((resolve) => (window.requestIdleCallback || setTimeout)(resolve));
    const figures = { "hypervolume-plot": run.hypervolume };
    for (const [name, figure] of Object.entries(run.curves || {})) figures[`curves-${name}`] = figure;
    (run.slices || []).forEach((figure, index) => { figures[`slice-${index}`] = figure; });
    // One figure each time, so that the page answers its reader between them.
    for (const [id, figure] of Object.entries(figures)) {
      await idle();
      await draw(id, figure).catch(showStatic);
      keepInView();
    }
    if (run.coordinates && list) {
      await idle();
      await coordinates.draw(run.coordinates, () => list.filterSoon()).catch(showStatic);
    }
    root.classList.add("whole");
    keepInView();
  }
  main();
})();
