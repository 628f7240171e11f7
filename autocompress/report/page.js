(() => {
  "use strict";
  const { root, at, unpack, plotly, idle, draw, save, csvText, plainText, element, addCopyButton } = drawing;
  root.classList.add("scripted");

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
  // A third objective, which is the colour of the points, counts beside both axes.
  function frontGroups(plot, menus, { records, colour }) {
    const metas = ["front", "dominated"];
    const indices = metas.map((meta) => plot.data.findIndex((trace) => trace.meta === meta));
    const points = indices.flatMap((trace, group) => (plot.data[trace].customdata || []).map((id, row) => {
      const { hovertext, marker: { symbol, color } } = plot.data[trace];
      return { id, group, trace, row, hover: hovertext[row], symbol: Array.isArray(symbol) ? symbol[row] : symbol, colour: colour ? color[row] : null };
    }));
    const words = ["</b> on the front", "</b> dominated"];
    return async function regroup(chosen) {
      const isDeclared = Object.values(chosen).every(({ isFirst }) => isFirst);
      for (const [kind, side] of [["cost", "x"], ["score", "y"]]) {
        const columns = menus.find((menu) => menu.name === kind).buttons.find(({ name }) => name === chosen[kind].name).args[0][side];
        for (const point of points) point[side] = columns[point.trace][point.row];
      }
      const sides = { x: chosen.cost.name, y: chosen.score.name, ...(colour ? { colour } : {}) };
      const toMinimize = (point) => Object.entries(sides).map(([side, name]) => (records[name].isMaximized ? -1 : 1) * point[side]);
      const isMeasured = (point) => Object.keys(sides).every((side) => point[side] !== null);
      const front = new Set(selection.paretoFront(points.filter(isMeasured), toMinimize));
      const parts = [[], []];
      for (const point of points) parts[isDeclared ? point.group : front.has(point) ? 0 : 1].push(point);
      const column = (key) => parts.map((part) => part.map((point) => point[key]));
      const hovers = parts.map((part, group) => part.map(({ hover }) => hover.replace(words[1 - group], words[group])));
      await Plotly.restyle(plot, { x: column("x"), y: column("y"), customdata: column("id"), hovertext: hovers, "marker.symbol": column("symbol"), ...(colour ? { "marker.color": column("colour") } : {}), selectedpoints: [null, null] }, indices);
    };
  }

  // The menus of the axes, and which columns they show.
  function controls(plot, menus, run, limits, changed) {
    const regroup = frontGroups(plot, menus, run.rule);
    const selects = {};
    const chosen = {};
    const isUpward = () => run.rule.records[chosen.score.name].isMaximized;
    function follow(name, index) {
      const { buttons } = menus.find((menu) => menu.name === name);
      if (name !== "scale") chosen[name] = { name: buttons[index].name, isFirst: index === 0 };
      const isLog = selects.scale.selectedIndex === 0;
      for (const kind of name === "scale" ? ["cost"] : [name]) limits.follow(kind, chosen[kind].name, kind === "cost" && isLog);
    }
    async function apply(name) {
      const { buttons } = menus.find((menu) => menu.name === name);
      const { selectedIndex } = selects[name];
      const button = buttons[selectedIndex];
      await Plotly[button.method](plot, ...button.args);
      follow(name, selectedIndex);
      if (name === "scale") return;
      await regroup(chosen);
      const line = stepLine(plot, isUpward());
      const index = plot.data.findIndex((trace) => trace.meta === "line");
      await Plotly.restyle(plot, { x: [line.map((point) => point[0])], y: [line.map((point) => point[1])] }, [index]);
    }
    for (const menu of menus) {
      const wrap = document.createElement("label");
      const select = (selects[menu.name] = document.createElement("select"));
      wrap.append({ cost: "Cost", score: "Score", scale: "Scale" }[menu.name], select);
      for (const button of menu.buttons) select.append(new Option(button.label, button.name ?? button.args[0]["xaxis.type"]));
      select.id = `axis-${menu.name}`;
      select.addEventListener("change", async () => {
        await apply(menu.name);
        changed();
      });
      at("front-controls").append(wrap);
    }
    for (const kind of ["cost", "score"]) follow(kind, 0);
    at("everything").addEventListener("click", () => {
      Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": isUpward() ? true : "reversed" });
    });
    return {
      columns: () => ({ cost: chosen.cost.name, score: chosen.score.name }),
      // Names of the choices that are not the first ones.
      get state() {
        return Object.fromEntries(Object.entries(selects).filter(([, select]) => select.selectedIndex > 0).map(([name, select]) => [name, select.value]));
      },
      // The names in a state that are no axis of this page.
      unknown(state) {
        return Object.entries(selects).filter(([name, select]) => state[name] && ![...select.options].some((option) => option.value === state[name]))
          .map(([name]) => state[name]);
      },
      async set(state) {
        for (const [name, select] of Object.entries(selects)) {
          const index = Math.max(0, [...select.options].findIndex((option) => option.value === state[name]));
          if (index === select.selectedIndex) continue;
          select.selectedIndex = index;
          await apply(name);
        }
      },
    };
  }
  const NO_CONTROLS = { columns: () => ({}), state: {}, unknown: () => [], set: async () => {} };

  // The candidate within the limits gets a mark of its own; it is drawn where its point is.
  function markChosen(plot, chosen) {
    if (!plot) return;
    const index = plot.data.findIndex((trace) => trace.meta === "chosen");
    const found = chosen && plot.data.filter(({ meta }) => ["front", "dominated", "baseline", "infeasible"].includes(meta))
      .flatMap(({ customdata, x, y, hovertext }) => (customdata || []).flatMap((id, row) => (id === chosen.id ? [{ x: x[row], y: y[row], hover: hovertext[row] }] : [])))[0];
    // Drawing takes longer than all else.
    const key = JSON.stringify([chosen?.id, found?.x, found?.y]);
    if (plot.dataset.chosen === key) return;
    plot.dataset.chosen = key;
    const point = found ? { x: [found.x], y: [found.y], customdata: [chosen.id], hovertext: [found.hover] } : { x: [], y: [], customdata: [], hovertext: [] };
    const values = Object.fromEntries(Object.entries(point).map(([name, value]) => [name, [value]]));
    Plotly.restyle(plot, { ...values, showlegend: Boolean(found) }, [index]);
  }

  // Arrow keys move along the front, Enter opens the card of the point.
  function followKeys(plot, open) {
    let current = null;
    const list = () => {
      const curveNumber = plot.data.findIndex((trace) => trace.meta === "front");
      const { x, y, customdata, hovertext } = plot.data[curveNumber];
      return customdata.map((id, pointNumber) => ({ id, curveNumber, pointNumber, x: x[pointNumber], hover: hovertext[pointNumber] }))
        .filter(({ x, pointNumber }) => x !== null && y[pointNumber] !== null).sort((one, other) => one.x - other.x);
    };
    plot.addEventListener("keydown", (event) => {
      const points = list();
      const position = points.findIndex(({ id }) => id === current);
      const last = points.length - 1;
      const steps = { ArrowRight: Math.min(position + 1, last), ArrowUp: Math.min(position + 1, last), ArrowLeft: Math.max(position - 1, 0), ArrowDown: Math.max(position - 1, 0), Home: 0, End: last };
      if (event.key === "Enter" && current !== null) {
        // The focus moves to the card, which the same key would close.
        event.preventDefault();
        open(current);
      } else if (event.key === "Escape") Plotly.Fx.unhover(plot);
      else if (event.key in steps && points.length) {
        event.preventDefault();
        const { id, curveNumber, pointNumber, hover } = points[steps[event.key]];
        current = id;
        Plotly.Fx.hover(plot, [{ curveNumber, pointNumber }]);
        at("front-point").textContent = plainText(hover);
      }
    });
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
        figure.data[0].dimensions = [...axes.slice(0, Math.min(2, axes.length - 2)), ...axes.slice(-2)];
      }
      const labels = figure.data[0].dimensions.map((axis) => axis.label.length);
      const room = at("coordinates").clientWidth / labels.length;
      // Labels that would touch each other are slanted; a letter is about six pixels wide.
      if (labels.some((length, index) => 3 * (length + (labels[index + 1] || 0)) > room)) figure.data[0].labelangle = -20;
      this.plot = await draw("coordinates", figure);
      this.plot.on("plotly_restyle", changed);
    },
  };

  function table(run, plot, limits, axes) {
    const head = at("table").tHead.rows[0];
    const body = at("table").tBodies[0];
    const first = at("status").textContent;
    const identity = run.columns.indexOf("id");
    const rows = run.data.map((cells, index) => ({ cells, index, html: run.rows[index] }));
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

    const isFiltered = () => at("filter").value.trim() !== "" || limits.isSet() || coordinates.marked().length > 0;
    function filter() {
      const text = at("filter").value;
      let [mask, problem] = [null, null];
      try {
        if (text.trim()) mask = query.selectRows(text, run);
      } catch (error) {
        if (!(error instanceof query.FilterError)) throw error;
        problem = error;
      }
      limitsPane.showProblem(at("filter"), at("filter-problem"), problem);
      if (problem) return;
      const marked = coordinates.marked();
      const isMarked = ({ index }) => marked.every(([values, ranges]) => ranges.some(([low, high]) => values[index] >= low && values[index] <= high));
      shown = rows.filter((row) => (!mask || mask[row.index]) && limits.satisfies(row.index) && isMarked(row));
      ordered = show();
      const count = shown.length.toLocaleString("en");
      at("status").textContent = !isFiltered() ? first
        : shown.length ? `${count} of ${rows.length.toLocaleString("en")} candidates match` +
          (shown.length > run.limit ? `; the table shows the first ${run.limit}.` : ".")
        : "No candidate satisfies this.";
      if (!plot) return;
      markChosen(plot, limits.chosen);
      const ids = new Set(shown.map((row) => row.cells[identity]));
      const selected = plot.data.map((trace) => {
        if (!isFiltered() || ["line", "teacher", "chosen"].includes(trace.meta)) return null;
        return (trace.customdata || []).flatMap((id, row) => (ids.has(id) ? [row] : []));
      });
      Plotly.update(plot, { selectedpoints: selected }, { shapes: limits.lines(axes.columns()) });
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

    return {
      filterSoon,
      get text() { return at("filter").value; },
      set text(value) {
        if (value === at("filter").value) return;
        at("filter").value = value;
        filter();
      },
    };
  }

  // ---- cards of all candidates, and two of them side by side ----------------------------------
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

  function cards(run, changed) {
    const identity = run.columns.indexOf("id");
    const index = new Map(run.data.map((cells, row) => [cells[identity], row]));
    const value = (row, name) => {
      const column = run.columns.indexOf(name);
      return column < 0 ? null : run.data[row][column];
    };
    const show = (amount, column) => formatting.formatValue(amount, column);
    const configText = (row) => run.cards.configs[row].map((part) => run.cards.parts[part]).join("\n");
    let pins = [];

    function pinButton(id) {
      const button = element("button", undefined, { type: "button", class: "pin" });
      const label = () => {
        button.textContent = pins.includes(id) ? "Pinned" : "Pin for comparison";
        button.setAttribute("aria-pressed", String(pins.includes(id)));
      };
      label();
      button.addEventListener("click", () => changePins(pins.includes(id) ? pins.filter((pin) => pin !== id) : [...pins, id]));
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
      left.append(element("h3", "Configuration", { class: "minor" }), element("pre", configText(row)));
      right.append(element("h3", "Scores and costs", { class: "minor" }), table);
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
      const configs = rows.map((row) => flatten(configText(row)));
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
          const size = `${change > 0 ? "+" : "-"}${formatting.formatDifference(change, column)}`;
          lines.push(tableRow(`${column.label}${split && `, ${split}`}`, [...values.map((amount) => show(amount, column)), `${size}${factor}`]));
        }
      }
      fillTable(at("comparison-table"), tableRow("", [...pins, "difference"], "th"), lines);
    }
    function setPins(ids) {
      if (!ids.length && !pins.length) return;
      pins = ids.filter((id) => index.has(id)).slice(-2);
      compare();
      dispatchEvent(new Event("pins"));
    }
    function changePins(ids) {
      setPins(ids);
      changed();
    }
    at("unpin").addEventListener("click", () => changePins([]));
    for (const card of document.querySelectorAll("details.card")) {
      const id = card.id.replace("card-", "");
      if (index.has(id)) card.querySelector("summary").after(pinButton(id));
    }
    let opened = "";
    return {
      open(id) {
        const card = at(`card-${id}`) || (index.has(id) ? build(id) : null);
        if (!card) return false;
        if (at("cards") && at("cards").contains(card)) at("cards").open = true;
        card.open = true;
        card.scrollIntoView();
        opened = id;
        return true;
      },
      get opened() { return opened; },
      get pins() { return pins; },
      has: (id) => index.has(id) || at(`card-${id}`) !== null,
      setPins,
    };
  }

  // ---- the state of the page in its address ---------------------------------------------------
  // "#run=KEY&filter=...&limits=...&cost=bytes&card=t1c2&pins=t1c2,t3c4&at=candidates", or a plain anchor such as
  // "#card-t1c2" and "#candidates" where nothing else is set.
  function addressState(run, parts) {
    const { list, limits, axes, all } = parts;
    const note = at("state-note");
    let section = "";
    function describe() {
      const state = { filter: list.text.trim(), limits: limits.text.trim(), ...axes.state, pins: all.pins.join(",") };
      const entries = Object.entries(state).filter(([, value]) => value);
      if (!entries.length) return all.opened ? `#card-${encodeURIComponent(all.opened)}` : section ? `#${section}` : " ";
      const target = all.opened ? [["card", all.opened]] : section ? [["at", section]] : [];
      return `#${new URLSearchParams([["run", run.key], ...entries, ...target])}`;
    }
    // Only entries that this page wrote are restored by the back button; a link within the page keeps what is set.
    const OURS = { autocompress: true };
    let written = location.hash;
    function write(method = "replaceState") {
      // The reader has just followed a link: its event comes next, and writes.
      if (location.hash !== written) return;
      const address = describe();
      const isSame = address === (location.hash || " ");
      // An address of nothing is the page without an anchor.
      history[isSame ? "replaceState" : method](OURS, "", address === " " ? location.pathname + location.search : address);
      written = location.hash;
    }
    async function restore(hash) {
      written = hash;
      note.textContent = "";
      const fields = new URLSearchParams(hash.slice(1));
      const isState = fields.has("run");
      const isForeign = isState && fields.get("run") !== run.key;
      if (isForeign) note.textContent = "The address has the settings of another run; they are ignored.";
      const state = isState && !isForeign ? Object.fromEntries(fields) : {};
      await axes.set(state);
      limits.text = state.limits || "";
      list.text = state.filter || "";
      const ids = (state.pins || "").split(",").filter(Boolean);
      all.setPins(ids);
      const card = isState ? state.card : readAnchor(hash.slice(1)).match(/^card-(.+)/)?.[1];
      const unknown = [...axes.unknown(state), ...[...ids, ...(card ? [card] : [])].filter((id) => !all.has(id))];
      if (unknown.length) note.textContent = `The address names what this page does not have; it is ignored: ${[...new Set(unknown)].join(", ")}.`;
      if (!isState) goTo(hash.slice(1));
      else if (state.card) all.open(state.card);
      else if (state.at) goTo(state.at, true);
    }
    function readAnchor(anchor) {
      try {
        return decodeURIComponent(anchor);
      } catch {
        // No encoded text: it is the name itself.
        return anchor;
      }
    }
    // Go to a card or to a section.
    function goTo(anchor, isScrolled = false) {
      const name = readAnchor(anchor);
      if (name.startsWith("card-")) return all.open(name.replace("card-", ""));
      section = name;
      if (isScrolled) at(name)?.scrollIntoView();
    }
    addEventListener("hashchange", async () => {
      if (history.state?.autocompress || location.hash.includes("run=")) return restore(location.hash);
      written = location.hash;
      goTo(location.hash.slice(1));
      write();
    });
    let wait = 0;
    return {
      restore: () => restore(location.hash),
      write,
      writeSoon() {
        clearTimeout(wait);
        wait = setTimeout(write, 300);
      },
    };
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
    let [plot, limits, list, address] = [null, null, null, null];
    let axes = NO_CONTROLS;
    if (run.rows) {
      query.prepare(run);
      limits = limitsPane.create(run, () => {
        list?.filterSoon();
        address?.writeSoon();
      });
    }
    try {
      const problem = await library;
      if (problem) throw problem;
      root.classList.add("drawn");
      if (run.front) {
        const menus = run.front.layout.updatemenus;
        delete run.front.layout.updatemenus;
        plot = await draw("front-plot", run.front);
        axes = controls(plot, menus, run, limits, () => {
          list.filterSoon();
          address.write("pushState");
        });
      }
    } catch (problem) {
      showStatic(problem);
    }
    if (run.rows) {
      list = table(run, plot, limits, axes);
      const all = cards(run, () => address.write("pushState"));
      address = addressState(run, { list, limits, axes, all });
      at("filter").addEventListener("input", address.writeSoon);
      await address.restore();
      address.write();
      if (plot) {
        // The address names the card, so that a reload or a mailed link opens it again.
        const open = (id) => {
          if (id === "teacher" || !all.open(id)) return false;
          address.write("pushState");
          return true;
        };
        plot.on("plotly_click", (event) => open(event.points[0].customdata));
        followKeys(plot, (id) => open(id) && at(`card-${id}`).querySelector("summary").focus());
      }
    }
    root.classList.add("ready");
    dispatchEvent(new Event("ready"));
    const keepInView = followTarget();
    // The front is visible first; figures further down are drawn when the browser is idle.
    const figures = { "hypervolume-plot": run.hypervolume };
    for (const [name, figure] of Object.entries(run.curves || {})) figures[`curves-${name}`] = figure;
    if (run.timeline) figures.timeline = run.timeline;
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
