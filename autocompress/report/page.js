(() => {
  "use strict";
  const { root, at, unpack, plotly, draw } = drawing;
  root.classList.add("scripted");

  // ---- the step line on whatever axes are shown ---------------------------------------------
  function stairs(plot, upward) {
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

  function controls(plot, menus, directions) {
    plot.dataset.score = menus.find((menu) => menu.name === "score").buttons[0].name;
    for (const menu of menus) {
      const wrap = document.createElement("label");
      const select = document.createElement("select");
      wrap.append({ cost: "Cost", score: "Score", scale: "Scale" }[menu.name], select);
      for (const button of menu.buttons) select.append(new Option(button.label));
      select.addEventListener("change", async () => {
        const chosen = menu.buttons[select.selectedIndex];
        await Plotly[chosen.method](plot, ...chosen.args);
        if (chosen.method !== "update") return;
        if (menu.name === "score") plot.dataset.score = chosen.name;
        const line = stairs(plot, directions[plot.dataset.score] !== "minimize");
        const place = plot.data.findIndex((trace) => trace.meta === "line");
        Plotly.restyle(plot, { x: [line.map((point) => point[0])], y: [line.map((point) => point[1])] }, [place]);
      });
      at("front-controls").append(wrap);
    }
    at("everything").addEventListener("click", () => {
      const upward = directions[plot.dataset.score] !== "minimize";
      Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": upward ? true : "reversed" });
    });
  }

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
        if (column < 0) throw new Error(`There is no column called ${name}.`);
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

  function table(run, plot) {
    const head = at("table").tHead.rows[0];
    const body = at("table").tBodies[0];
    const first = at("status").textContent;
    const identity = run.columns.indexOf("id");
    const rows = run.data.map((cells, place) => ({
      cells, place, html: run.rows[place], text: cells.filter((cell) => typeof cell === "string").join(" ").toLowerCase(),
    }));
    let shown = rows;
    let sort = null;

    function show() {
      const ordered = [...shown];
      if (sort) {
        ordered.sort((a, b) => {
          const [one, other] = [a.cells[sort.column], b.cells[sort.column]];
          if (one === null || other === null) return (one === null) - (other === null) || a.place - b.place;
          const order = typeof one === "number" ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
          return order * sort.sign || a.place - b.place;
        });
      }
      // Every row was escaped when the page was written.
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

    function filter() {
      const text = at("filter").value.trim();
      try {
        const keep = parse(text, run.columns);
        shown = text ? rows.filter(keep) : rows;
      } catch (problem) {
        at("status").textContent = problem.message;
        return;
      }
      ordered = show();
      const count = shown.length.toLocaleString("en");
      at("status").textContent = !text ? first
        : shown.length ? `${count} of ${rows.length.toLocaleString("en")} candidates match` +
          (shown.length > run.limit ? `; the first ${run.limit} are listed.` : ".")
        : "No candidate satisfies this.";
      if (!plot) return;
      const ids = new Set(shown.map((row) => row.cells[identity]));
      const selected = plot.data.map((trace) => {
        if (!text || trace.meta === "line" || trace.meta === "teacher") return null;
        return (trace.customdata || []).flatMap((id, row) => (ids.has(id) ? [row] : []));
      });
      Plotly.restyle(plot, { selectedpoints: selected });
    }
    let wait = 0;
    at("filter").addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(filter, 120);
    });

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

    return (id) => {
      at("filter").value = `id = "${id}"`;
      filter();
      at("candidates").scrollIntoView();
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

  async function main() {
    const run = JSON.parse(await unpack("run-data"));
    let plot = null;
    try {
      await plotly();
      root.classList.add("drawn");
      if (run.front) {
        const menus = run.front.layout.updatemenus;
        delete run.front.layout.updatemenus;
        plot = await draw("front-plot", run.front);
        controls(plot, menus, run.directions);
      }
      await draw("hypervolume-plot", run.hypervolume);
    } catch (problem) {
      // The still pictures stay.
      root.classList.remove("drawn");
      console.error(problem);
    }
    if (run.rows) {
      const find = table(run, plot);
      if (plot) {
        plot.on("plotly_click", (event) => {
          const id = event.points[0].customdata;
          if (id !== "teacher" && !open(id)) find(id);
        });
      }
    }
  }
  main();
})();
